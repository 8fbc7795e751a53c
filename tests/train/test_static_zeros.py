"""`static`: what is pruned is exactly zero, whatever the optimizer remembers or does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transposable import MaskController, densify, sparsify
from transposable.nn import SparseLayer, sparse_layers
from transposable.train import DenseStart, DenseTail, Static

Optimizer = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.1),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
    "nesterov and decay": lambda model: torch.optim.SGD(
        model.parameters(), 0.05, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
    "maximize": lambda model: torch.optim.SGD(
        model.parameters(), 1e-4, momentum=0.9, weight_decay=0.1, maximize=True
    ),
    "adam with decay in the gradient": lambda model: torch.optim.Adam(
        model.parameters(), 0.01, weight_decay=0.1, amsgrad=True
    ),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1),
    "adamw fused": lambda model: torch.optim.AdamW(model.parameters(), 0.01, fused=True),
    "nadam": lambda model: torch.optim.NAdam(model.parameters(), 0.01),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), 0.01, momentum=0.9),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), 0.05),
    "rprop": lambda model: torch.optim.Rprop(model.parameters(), 0.01),
    "asgd": lambda model: torch.optim.ASGD(model.parameters(), 0.05),
}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


class Convs(nn.Module):
    """Every kind of sparse layer; groups, kernels and ragged sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.c = nn.Conv1d(16, 10, 2)
        self.d = nn.Linear(10 * 15, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.d(torch.tanh(self.c(x.flatten(2))).flatten(1))


def network(seed: int = 0) -> Convs:
    torch.manual_seed(seed)
    return Convs()


def train(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    steps: int,
    after: Callable[[], object] = lambda: None,
) -> None:
    for step in range(steps):
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        opt.step()
        after()
        opt.zero_grad()


def pruned_values(layer: SparseLayer) -> torch.Tensor:
    return layer.weight.detach()[~layer.mask]


def assert_zeros(model: nn.Module) -> None:
    for name, layer in sparse_layers(model).items():
        values = pruned_values(layer)
        assert values.numel() > 0
        assert (values == 0).all(), f"{name}: {values.abs().max()}"


@optimizers
@pytest.mark.parametrize("pattern", ["2:4", "2:4T", "4:8T", "50%"])
def test_zeros_stay_with_state_from_a_dense_phase(optimizer: Optimizer, pattern: str) -> None:
    model = network()
    opt = optimizer(model)
    train(model, opt, 3)
    sparsify(model, pattern)
    masks = {name: layer.mask.clone() for name, layer in sparse_layers(model).items()}
    ctl = MaskController(model, recipe="static")
    assert_zeros(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, opt, 5, after=lambda: (ctl.step(), assert_zeros(model)))
    for name, layer in sparse_layers(model).items():
        assert torch.equal(layer.mask, masks[name])
        assert not torch.equal(layer.weight, before[f"{name}.weight"]), "the kept ones train"


def test_the_state_would_bring_them_back() -> None:
    """The controller does it: with the same optimizer and no ctl.step, momentum moves the zeros."""
    model = network()
    opt = OPTIMIZERS["momentum"](model)
    train(model, opt, 3)
    sparsify(model, "2:4T")
    MaskController(model, recipe="static")
    train(model, opt, 1)
    assert all((pruned_values(layer) != 0).any() for layer in sparse_layers(model).values())


@given(
    lr=st.floats(1e-4, 0.5),
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 0.5),
    adam=st.booleans(),
    dense=st.integers(0, 3),
    refresh=st.sampled_from([None, 1, 2]),
)
@settings(deadline=None, max_examples=25)
def test_zeros_stay_for_any_setting(
    lr: float, momentum: float, decay: float, adam: bool, dense: int, refresh: int | None
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 8))
    parameters = model.parameters()
    opt: torch.optim.Optimizer
    if adam:
        opt = torch.optim.AdamW(parameters, lr, betas=(momentum, 0.99), weight_decay=decay)
    else:
        opt = torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=decay)
    train(model, opt, dense)
    sparsify(model, "2:4T")
    ctl = MaskController(model, recipe="static", refresh=refresh)
    train(model, opt, 4, after=lambda: (ctl.step(), assert_zeros(model)))


@optimizers
def test_zeros_stay_after_loading(optimizer: Optimizer, tmp_path: Path) -> None:
    """Saved and loaded into a new model, optimizer and controller: zeros, and the same run."""
    model = network()
    opt = optimizer(model)
    train(model, opt, 2)
    sparsify(model, "4:8T")
    ctl = MaskController(model, recipe="static")
    train(model, opt, 2, after=ctl.step)
    torch.save(
        {"model": model.state_dict(), "opt": opt.state_dict(), "ctl": ctl.state_dict()},
        tmp_path / "run.pt",
    )
    train(model, opt, 2, after=ctl.step)

    fresh = network(seed=1)
    sparsify(fresh, "4:8T")
    fresh_opt = optimizer(fresh)
    fresh_ctl = MaskController(fresh, recipe="static")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    fresh.load_state_dict(saved["model"])
    fresh_opt.load_state_dict(saved["opt"])
    fresh_ctl.load_state_dict(saved["ctl"])
    assert_zeros(fresh)
    train(fresh, fresh_opt, 2, after=lambda: (fresh_ctl.step(), assert_zeros(fresh)))
    theirs = fresh.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@optimizers
def test_dense_optimizer_state_loaded_into_a_sparse_run(optimizer: Optimizer) -> None:
    """Sparse fine-tuning that continues with the optimizer of the dense training."""
    dense = network()
    dense_opt = optimizer(dense)
    train(dense, dense_opt, 3)
    model = copy.deepcopy(dense)
    sparsify(model, "2:4T")
    opt = optimizer(model)
    opt.load_state_dict(copy.deepcopy(dense_opt.state_dict()))
    ctl = MaskController(model, recipe="static")
    train(model, opt, 3, after=lambda: (ctl.step(), assert_zeros(model)))
    assert [change.kept for change in densify(model)] == pytest.approx([0.5] * 4, abs=0.2)
    for layer in (model.a, model.b, model.c, model.d):
        assert type(layer) in (nn.Conv2d, nn.Conv1d, nn.Linear)
        assert (layer.weight == 0).float().mean() > 0.3


def test_zeros_from_the_switch_on_and_until_the_tail() -> None:
    model = network()
    opt = OPTIMIZERS["momentum"](model)
    sparsify(model, "2:4T")
    ctl = MaskController(model, recipe=DenseTail(DenseStart(Static(), at=2), at=5))
    zeros = []

    def after() -> None:
        ctl.step()
        zeros.append(all((pruned_values(x) == 0).all() for x in sparse_layers(model).values()))

    train(model, opt, 7, after)
    # In the tail momentum moves them at once.
    assert zeros == [False, True, True, True, True, False, False]


def test_conv1d_of_transformers() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), conv1d(16, 48), nn.Tanh(), conv1d(8, 16))
    opt = OPTIMIZERS["adamw"](model)
    train(model, opt, 2)
    sparsify(model, "2:4T")
    ctl = MaskController(model, recipe="static")
    train(model, opt, 3, after=lambda: (ctl.step(), assert_zeros(model)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_zeros_in_every_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 16, dtype=dtype)
    opt = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 16, dtype=dtype)).sum().backward()
    opt.step()
    opt.zero_grad()
    sparsify(model, "4:8T")
    ctl = MaskController(model, recipe="static")
    for _ in range(3):
        model(torch.ones(2, 16, dtype=dtype)).sum().backward()
        opt.step()
        ctl.step()
        assert_zeros(model)
