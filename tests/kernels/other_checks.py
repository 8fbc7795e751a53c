"""What the kernels of walks and of plain N:M must do, and the ways to them, on whatever device."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import transposable
from score_families import make_scores
from transposable import Exact, Greedy, HostRouteWarning, RowWise, ScoresError, TwoApprox
from transposable.kernels import row_wise, walk
from transposable.kernels.row_wise import naive as naive_row_wise
from transposable.kernels.walk import naive as naive_walk
from transposable.nn import SparseLinear, refresh_masks

FAMILIES = ("gaussian", "ties", "infinities")
Fill = Callable[..., torch.Tensor]


def _same(fill: Fill, naive: Fill, scores: torch.Tensor, n: int, m: int, what: str) -> None:
    for magnitude in (True, False):
        kept, wanted = (torch.ones_like(x, dtype=torch.bool) for x in (scores, scores.cpu()))
        nans = fill(scores, kept, n, m, magnitude)
        assert int(nans) == int(naive(scores.cpu(), wanted, n, m, magnitude)), what
        assert torch.equal(kept.cpu(), wanted), (what, magnitude)


def against_twins(device: str, n: int, m: int) -> None:
    """The kernels' masks are those of the twins, entry for entry, NaN and ragged edges included."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for at, name in enumerate(FAMILIES):
        scores = make_scores(name, m + 2, 2 * m - 1, at).to(dtypes[at % 3])[None]
        if name == "gaussian":
            scores[0, m + 1, 2] = math.nan
        scores = scores.to(device)
        what = f"{name} {n}:{m}"
        _same(row_wise.fill, naive_row_wise.fill, scores, n, m, what)
        for how in ("prune", "keep"):

            def kernel(*given: object, how: str = how) -> torch.Tensor:
                return walk.fill(*given, how=how)  # type: ignore[arg-type]

            def twin(*given: object, how: str = how) -> torch.Tensor:
                return naive_walk.fill(*given, how=how)  # type: ignore[arg-type]

            _same(kernel, twin, scores, n, m, f"{what} {how}")


def public_functions(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """find_mask, solve, certify and verify on a device; masks are those of the CPU."""
    weight = make_scores("gaussian", 24, 21, 1)
    there = weight.to(device)
    cases = (
        (Exact(), "2:4T"),
        (TwoApprox(), "2:4T"),
        (TwoApprox(repair=True), "2:4T"),
        (Greedy(), "2:4T"),
        (Greedy(repair=False, sweeps=0), "2:4T"),
        (RowWise(), "2:4"),
    )
    with monkeypatch.context() as patch:
        patch.setattr("transposable.kernels.support.elsewhere", lambda matrices: False)
        on_cpu = [transposable.find_mask(weight, pattern, solver=s) for s, pattern in cases]
        bounds = [transposable.solve(weight.abs(), p, s).bound for s, p in cases]
    for (solver, pattern), wanted, bound in zip(cases, on_cpu, bounds, strict=True):
        found = transposable.find_mask(there, pattern, solver=solver)
        assert found == wanted, solver
        assert found.tensor.device == there.device
        assert transposable.verify(found, pattern)
        solution = transposable.solve(there.abs(), pattern, solver)
        assert solution.mask == wanted
        assert solution.status.ok
        assert solution.bound == pytest.approx(bound)
        assert solution.stats["ran_on"] == str(there.device)
    solution = transposable.solve(there.abs(), "2:4T")
    assert transposable.certify(there.abs(), solution.mask, solution.potentials).optimal
    there = there.clone()
    there[3, 5] = math.nan
    with pytest.raises(ScoresError, match=r"index \(3, 5\).*NaN"):
        transposable.find_mask(there, "2:4T")


def filled_in_place(device: str) -> None:
    """fill_mask: any strides and layouts of the mask, NaN counted."""
    weight = make_scores("gaussian", 16, 24, 2).to(device)
    wanted = transposable.find_mask(weight, "2:4T").tensor
    for out in (torch.ones_like(wanted), torch.ones_like(wanted.T).T):
        assert int(transposable.fill_mask(out, weight, "2:4T")) == 0
        assert torch.equal(out, wanted)
    images = make_scores("gaussian", 16, 8 * 9, 3).reshape(16, 8, 3, 3).to(device)
    for memory in (torch.contiguous_format, torch.channels_last):
        out = torch.empty_like(images, dtype=torch.bool, memory_format=memory)
        transposable.fill_mask(out, images, "2:4T", layout="conv")
        assert torch.equal(out, transposable.find_mask(images, "2:4T", layout="conv").tensor)
    weight[0, 0] = math.nan
    for solver in ("exact", "greedy", TwoApprox(repair=True)):
        assert int(transposable.fill_mask(wanted, weight, "2:4T", solver=solver)) == 1
        assert not wanted[:4, :4].any()
        assert (wanted[4:].sum(1) == 12).all()


def refreshed(device: str) -> None:
    """A refresh of layers where they are: what it reports, and that a NaN stops all of it."""
    torch.manual_seed(0)
    model = nn.Sequential(*(SparseLinear(16, 16, pattern="2:4T") for _ in range(2))).to(device)
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.randn(16, 16))
    refresh_masks(model, Greedy())
    for layer in model:
        found = transposable.find_mask(layer.weight.detach(), "2:4T", solver=Greedy())
        assert torch.equal(layer.mask, found.tensor)
    report = refresh_masks(model)
    weights = [layer.weight.detach().abs().double() for layer in model]
    kept = sum(float(torch.where(x.mask, w, 0).sum()) for x, w in zip(model, weights, strict=True))
    assert report.kept == pytest.approx(kept / sum(float(w.sum()) for w in weights))
    assert report.gap == 0.0
    masks = [layer.mask.clone() for layer in model]
    with torch.no_grad():
        model[0].weight.neg_().add_(torch.randn(16, 16).to(device))
        model[1].weight[3, 4] = math.nan
    with pytest.raises(ScoresError, match=r"layer '1'.*\(3, 4\).*NaN"):
        refresh_masks(model)
    assert all(torch.equal(a.mask, b) for a, b in zip(model, masks, strict=True))


def by_way_of_the_host(device: str) -> None:
    """What has no kernel is solved on the CPU, and says so."""
    weight = make_scores("gaussian", 12, 12, 4).to(device)
    for given, pattern, solver, why in (
        (weight, "3:6T", "exact", "tiles of 6 x 6 have no kernel"),
        (weight.double(), "2:4T", "exact", "torch.float64 has no kernel"),
        (weight, "2:4T", "entropic", "solver 'entropic' has no kernel"),
        (weight, "2:4S", "sequential", "solver 'sequential' has no kernel"),
    ):
        with pytest.warns(HostRouteWarning, match=why):
            solution = transposable.solve(given.abs(), pattern, solver)
        assert solution.stats["ran_on"] == "cpu"
        assert solution.mask.tensor.device == weight.device
        assert not solution.mask.violations()
