"""Layers that the pruned model gives other rows than the dense one: experts behind a router."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from prune import routed
from transposable import verify
from transposable.errors import CalibrationError
from transposable.prune import PublishedAdaPrune, prune_model


def _inputs(model: nn.Module, name: str) -> torch.Tensor:
    """All that a layer is given."""
    found: list[torch.Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    with torch.no_grad():
        for batch in routed.batches():
            model(batch)
    handle.remove()
    return torch.cat(found)


def _loss(model: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        return sum(float((model(x) - dense(x)).square().mean()) for x in routed.batches())


def test_experts_are_fitted_to_the_tokens_that_reach_them() -> None:
    torch.manual_seed(0)
    dense = routed.Network()
    model, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    report = prune_model(model, "2:4T", calibration=routed.batches(), exclude="*.router")
    prune_model(masked, "2:4T", "magnitude", exclude="*.router")
    assert _loss(model, dense) < 0.7 * _loss(masked, dense)
    rerouted = [layer for layer in report.layers if layer.note]
    assert len(rerouted) >= 8
    for layer in report.layers:
        assert verify(model.get_submodule(layer.name).weight.detach(), "2:4T")
    for layer in rerouted:
        assert layer.note.startswith("routed: ")
        x = _inputs(model, layer.name)  # layers behind it, pruned later, do not change that
        assert layer.samples == len(x)
        old, new = (net.get_submodule(layer.name) for net in (dense, model))
        with torch.no_grad():
            wanted = old(x) - old.bias
            wanted = wanted - wanted.mean(0) if len(x) > 1 else wanted
            error = float((old(x) - new(x)).square().sum() / wanted.square().sum())
        assert layer.error == pytest.approx(error, rel=1e-3, abs=1e-6)
        assert layer.error <= layer.error_masked


@pytest.mark.parametrize("method", ["sparsegpt", "alps", PublishedAdaPrune(steps=20), "wanda"])
def test_every_method(method: Any) -> None:
    torch.manual_seed(0)
    model = routed.Network()
    report = prune_model(
        model, "2:4T", method, calibration=routed.batches(), exclude=["*.router", "last"]
    )
    assert any(layer.note for layer in report.layers)
    for layer in report.layers:
        assert verify(model.get_submodule(layer.name).weight.detach(), "2:4T")


class Threshold(nn.Module):
    """Halving the first layer, whose inputs are ones, lets no row through to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16, bias=False)
        self.rare = nn.Linear(16, 16)
        nn.init.ones_(self.first.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        chosen = x[:, 0] > 12
        return self.rare(x[chosen]) if bool(chosen.any()) else x


def test_a_layer_that_is_reached_no_more_is_pruned_by_magnitude() -> None:
    torch.manual_seed(0)
    model = Threshold()
    alone = copy.deepcopy(model.rare)
    with pytest.raises(CalibrationError, match="never reached 'rare'"):
        prune_model(model, "2:4T", "wanda", torch.ones(8, 16), strict=True)
    assert bool((model.first.weight == 1).all())
    report = prune_model(model, "2:4T", "wanda", torch.ones(8, 16))
    assert [layer.method for layer in report.layers] == ["wanda", "magnitude"]
    assert report.layers[1].note == "never reached by the calibration; pruned by magnitude"
    prune_model(alone, "2:4T", "magnitude")
    assert torch.equal(model.rare.weight, alone.weight)


@pytest.mark.parametrize("method", ["adaprune", "sparsegpt", "alps"])
@pytest.mark.parametrize("rows", [1, 5])
def test_inputs_that_are_all_alike(method: str, rows: int) -> None:
    """Less their mean, rounding would be left of them, and weights be fitted to that."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32))
    dense = copy.deepcopy(model)
    x = torch.randn(1, 64).expand(rows, 64)
    report = prune_model(model, "2:4T", method, x)
    layer = report.layers[0]
    with torch.no_grad():
        power = (dense(x) - dense[0].bias).square().sum()
        error = float((model(x) - dense(x)).square().sum() / power)
    assert layer.error == pytest.approx(error, rel=1e-3, abs=1e-6)
    assert error < 0.3
    # None grows out of proportion.
    with torch.no_grad():
        assert float(model[0].weight.abs().max()) < 2 * float(dense[0].weight.abs().max())
