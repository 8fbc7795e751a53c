"""What a pruning run depends on, in short texts: two runs with equal ones do the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from transposable._version import __version__
from transposable.prune.calibration import Call
from transposable.prune.one_layer import Settings
from transposable.prune.plan import Layer


def fingerprint(
    model: nn.Module,
    layers: Mapping[str, Layer],
    calls: Sequence[Call],
    settings: Settings,
) -> dict[str, str]:
    """Texts by what they describe, for a message to name; tensors by the SHA-256 of their bytes.

    Args:
        model: dense.
        layers: what is pruned.
        calls: the whole calibration.
        settings: how all layers are pruned.
    """
    patterns = {name: str(layer.pattern) for name, layer in layers.items()}
    return {
        "version": __version__,
        "pattern": repr(patterns),
        "mode": "sequential" if settings.sequential else "parallel",
        "method": described(settings.method),
        "solver": described(settings.solver),
        "keep_zeros": str(settings.keep_zeros),
        "refit_bias": str(settings.refit_bias),
        "weights": _digest(_state(model)),
        "calibration": _digest(_data(calls)),
    }


def described(value: Any) -> str:
    """A text that is the same in another process: functions by name rather than by address.

    Example:
        >>> described(len), described(3)
        ('builtins.len', '3')
    """
    if is_dataclass(value) and not isinstance(value, type):
        options = [f"{f.name}={described(getattr(value, f.name))}" for f in fields(value)]
        return f"{type(value).__qualname__}({', '.join(options)})"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def _state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers, less those that a model makes up for itself."""
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            yield f"{name}.{key}", parameter
        for key, buffer in module._buffers.items():
            if key not in module._non_persistent_buffers_set:
                yield f"{name}.{key}", buffer


def _data(calls: Sequence[Call]) -> Iterator[tuple[str, Any]]:
    for call in calls:
        leaves, structure = pytree.tree_flatten((call.args, call.kwargs))
        yield f"{call.number} {structure}", None
        for leaf in leaves:
            # What is no plain value may show an address, and only its kind counts.
            plain = isinstance(leaf, (torch.Tensor, int, float, str, bytes, type(None)))
            yield "", leaf if plain else type(leaf).__qualname__


def _digest(values: Iterator[tuple[str, Any]]) -> str:
    total = hashlib.sha256()
    for name, value in values:
        if isinstance(value, torch.Tensor):
            total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
            total.update(flat.cpu().numpy().data)
        else:
            total.update(f"{name} {value!r};".encode())
    return total.hexdigest()
