"""A model with every kind of layer that can be sparse, and how to see that nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Frozen = Callable[[nn.Module], "contextmanager[None]"]


class Net(nn.Module):
    """Conv2d, Conv1d, Linear and Conv1D in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 3, padding=1)
        self.conv = nn.Conv1d(16, 16, 3, groups=2, bias=False)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16, bias=False))
        self.head = Conv1D(12, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.stem(x).flatten(2)).mean(-1)
        return self.head(self.mlp(x))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))


def traits(model: nn.Module) -> dict[str, object]:
    """What a module is, all the way down: types, attributes, Parameters by identity, values."""
    found: dict[str, object] = {"repr": repr(model), "keys": list(model.state_dict())}
    for name, module in model.named_modules():
        found[f"{name}: type"] = type(module)
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules"):
                found[f"{name}: {key}"] = {k: id(v) for k, v in value.items()}
            elif isinstance(value, dict):
                found[f"{name}: {key}"] = dict(value)
            else:
                found[f"{name}: {key}"] = value
    for name, tensor in model.state_dict(keep_vars=True).items():
        found[f"{name}: value"] = None if tensor.is_meta else tensor.detach().cpu().tolist()
        found[f"{name}: version"] = tensor._version
    return found


@pytest.fixture
def unchanged() -> Frozen:
    """A context in which the model must not change, for errors that change nothing."""

    @contextmanager
    def context(model: nn.Module) -> Iterator[None]:
        before = repr(traits(model))
        yield
        assert repr(traits(model)) == before

    return context
