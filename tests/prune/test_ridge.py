"""The ridge that is chosen by what was not fitted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from transposable.errors import MethodError
from transposable.prune import ALPS, AdaPrune, prune_model
from transposable.prune.ridge import CANDIDATES, WITHOUT_HALVES


def _data(samples: int, rank: int = 48) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(samples)
    mixing = torch.randn(rank, 64, generator=torch.Generator().manual_seed(7))
    noise = 0.3 * torch.randn(samples, 64, generator=generator)
    return list((torch.randn(samples, rank, generator=generator) @ mixing + noise).split(64))


def _layer() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96))


def _error(pruned: nn.Module, dense: nn.Module, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return float(sum((pruned(x) - dense(x)).square().sum() for x in data))


def _ridge(samples: int) -> tuple[float, float]:
    """The ridge chosen for so many samples, and the error on others relative to the best one."""
    dense, others = _layer(), _data(5000)
    errors = {}
    for ridge in ("auto", *(c / 2 for c in CANDIDATES)):
        net = copy.deepcopy(dense)
        report = prune_model(net, "2:4T", AdaPrune(ridge=ridge), _data(samples), samples=samples)
        errors[ridge] = _error(net, dense, others)
        if ridge == "auto":
            chosen = report.layers[0].info["ridge"]
    best = min(value for key, value in errors.items() if key != "auto")
    return chosen, errors["auto"] / best


def test_more_data_needs_less_ridge() -> None:
    few, loss_of_few = _ridge(80)
    many, loss_of_many = _ridge(4000)
    assert many < few
    assert loss_of_few < 1.25
    assert loss_of_many < 1.02


def test_it_is_one_of_the_candidates() -> None:
    report = prune_model(_layer(), "2:4T", "adaprune", _data(512))
    assert report.layers[0].info["ridge"] in [c / 2 for c in CANDIDATES]


def test_batches_of_one_sample_are_dealt_out() -> None:
    data = [x[None] for x in torch.cat(_data(256))]
    alone = prune_model(_layer(), "2:4T", "adaprune", data).layers[0]
    assert alone.info["ridge"] in [c / 2 for c in CANDIDATES]
    assert alone.samples == 256


def test_a_single_sample_has_no_halves() -> None:
    report = prune_model(_layer(), "2:4T", "adaprune", [_data(64)[0][:1]])
    assert report.layers[0].info["ridge"] >= WITHOUT_HALVES


@pytest.mark.parametrize("kind", [AdaPrune, ALPS])
@pytest.mark.parametrize("ridge", [-1.0, float("nan"), float("inf"), "much", True, None])
def test_a_ridge_that_is_none(kind: type[AdaPrune], ridge: float) -> None:
    with pytest.raises(MethodError, match=r"received ridge=.*it is 'auto' or a finite number"):
        kind(ridge=ridge)
