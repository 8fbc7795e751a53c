"""Batch norm after pruning: matched to the dense network, or estimated anew."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from transposable.prune import prune_model


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.BatchNorm1d(12),
    )
    net.train()
    for _ in range(60):
        net(_plain(64) * 3 + 1)  # the network knows other data than the calibration
    return net.eval()


def _plain(count: int) -> torch.Tensor:
    return torch.randn(count, 8, 5, 5)


@pytest.fixture
def net() -> nn.Sequential:
    return _net()


@pytest.fixture
def data() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [_plain(64) for _ in range(4)]


def _inputs(net: nn.Module, data: list[torch.Tensor]) -> list[torch.Tensor]:
    """What each batch norm is given."""
    norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    seen: list[list[torch.Tensor]] = [[] for _ in norms]
    handles = [
        norm.register_forward_pre_hook(lambda m, args, s=s: s.append(args[0]))
        for norm, s in zip(norms, seen, strict=True)
    ]
    with torch.no_grad():
        for x in data:
            net(x)
    for handle in handles:
        handle.remove()
    return [torch.cat(s).transpose(0, 1).flatten(1) for s in seen]


def test_without_an_effect_of_pruning_nothing_moves(
    net: nn.Sequential, data: list[torch.Tensor]
) -> None:
    before = copy.deepcopy(net.state_dict())
    # A mask that is there already: pruning changes no weight.
    prune_model(net, "2:4T", "magnitude")
    weights = copy.deepcopy(net.state_dict())
    report = prune_model(net, "2:4T", "magnitude", data, batchnorm="match")
    assert report.batch_norms == ("1", "4", "7")
    for key, value in net.state_dict().items():
        assert torch.allclose(value, weights[key], rtol=1e-4, atol=1e-5), key
        if "running" in key:
            assert torch.allclose(value, before[key], rtol=1e-4, atol=1e-5), key


def test_match_moves_statistics_by_what_pruning_changed(
    net: nn.Sequential, data: list[torch.Tensor]
) -> None:
    dense = copy.deepcopy(net)
    prune_model(net, "2:4T", "magnitude", data, batchnorm="match")
    # The input of the first batch norm depends on no other: the rule can be read off it.
    before, after = _inputs(dense, data)[0], _inputs(net, data)[0]
    grown = net[1].running_var / dense[1].running_var
    assert torch.allclose(grown, after.var(1) / before.var(1), rtol=0.02)
    with torch.no_grad():
        given = (after.mean(1) - net[1].running_mean) / net[1].running_var.sqrt()
        wanted = (before.mean(1) - dense[1].running_mean) / dense[1].running_var.sqrt()
    assert torch.allclose(given, wanted, atol=0.01)


def test_match_keeps_the_scale_of_every_output(
    net: nn.Sequential, data: list[torch.Tensor]
) -> None:
    dense = copy.deepcopy(net)
    kept = copy.deepcopy(net)
    prune_model(net, "2:4T", "magnitude", data, batchnorm="match")
    prune_model(kept, "2:4T", "magnitude", data, batchnorm="keep")
    with torch.no_grad():
        wanted, matched, plain = (
            torch.cat([model(x) for x in data]) for model in (dense, net, kept)
        )
    scale = wanted.std(0)
    assert ((matched.mean(0) - wanted.mean(0)) / scale).abs().max() < 0.1
    assert (matched.std(0) / scale - 1).abs().max() < 0.1
    assert (plain.std(0) / scale - 1).abs().max() > 0.2


def test_estimate_takes_the_statistics_of_the_data(
    net: nn.Sequential, data: list[torch.Tensor]
) -> None:
    momenta = [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    prune_model(net, "2:4T", "magnitude", data, batchnorm="estimate")
    given = _inputs(net, data)[0]
    assert torch.allclose(net[1].running_mean, given.mean(1), atol=1e-5)
    assert torch.allclose(net[1].running_var, given.var(1), rtol=0.02)
    assert [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    assert not any(m.training for m in net.modules())


def test_estimate_sees_fresh_augmentations(net: nn.Sequential) -> None:
    class Loader:
        passes = 0

        def __iter__(self) -> Any:
            Loader.passes += 1
            torch.manual_seed(Loader.passes)
            return iter([_plain(64) + 10 * (Loader.passes - 1)])

    prune_model(net, "2:4T", "magnitude", Loader(), batchnorm="estimate")
    assert Loader.passes == 2
    wanted = net[0].weight.detach().sum((1, 2, 3)) * 10
    assert torch.allclose(net[1].running_mean, wanted, atol=0.5)


def test_keep_leaves_them(net: nn.Sequential, data: list[torch.Tensor]) -> None:
    before = copy.deepcopy(net.state_dict())
    report = prune_model(net, "2:4T", "adaprune", data, batchnorm="keep")
    assert report.batch_norms == ()
    for key, value in net.state_dict().items():
        if "running" in key:
            assert torch.equal(value, before[key])


@pytest.mark.parametrize("how", ["match", "estimate"])
def test_a_failure_restores_them(
    net: nn.Sequential, data: list[torch.Tensor], how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = copy.deepcopy(net.state_dict())
    original = getattr(__import__("transposable.prune.batchnorm", fromlist=["x"]), how)

    def fail(*args: Any) -> None:
        original(*args)
        raise RuntimeError("power cut")

    monkeypatch.setattr(f"transposable.prune.batchnorm.{how}", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        prune_model(net, "2:4T", "magnitude", data, batchnorm=how)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_batch_norms_without_statistics_are_left(data: list[torch.Tensor]) -> None:
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16, track_running_stats=False))
    report = prune_model(net, "2:4T", "magnitude", data)
    assert report.batch_norms == ()
