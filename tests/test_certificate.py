"""The certificate proves optima and refuses everything else."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import transposable.certificate as certificate_module
from score_families import FAMILIES, tiles
from transposable import Mask, MaskError, Potentials, ScoresError, Solution, certify, solve

SEEDS = st.integers(0, 2**32 - 1)


def optimum(scores: torch.Tensor, pattern: str) -> tuple[Mask, Potentials]:
    solution: Solution = solve(scores, pattern)
    assert solution.potentials is not None
    return solution.mask, solution.potentials


def four_cycles(kept: np.ndarray) -> list[tuple[int, int, int, int]]:
    """(i, k, j, l): kept at (i, j) and (k, l), pruned at (i, l) and (k, j)."""
    rows, cols = kept.shape
    return [
        (i, k, j, x)
        for i in range(rows)
        for k in range(rows)
        for j in range(cols)
        for x in range(cols)
        if kept[i, j] and kept[k, x] and not kept[i, x] and not kept[k, j]
    ]


@given(
    seed=SEEDS,
    pattern=st.sampled_from(["1:2T", "1:4T", "2:4T", "3:4T", "4:8T"]),
    family=st.sampled_from([name for name in FAMILIES if name not in ("zeros", "all equal")]),
    data=st.data(),
)
def test_a_worse_mask_is_not_proved(
    seed: int, pattern: str, family: str, data: st.DataObject
) -> None:
    """Exchanging kept and pruned entries keeps the pattern; a loss must be noticed."""
    m = int(pattern[2:-1])
    scores = tiles(family, seed, m, 1)[0].astype(np.float64)
    mask, potentials = optimum(torch.from_numpy(scores), pattern)
    assert certify(scores, mask, potentials)
    kept = mask.tensor.numpy().copy()
    cycles = four_cycles(kept)
    assume(cycles)
    i, k, j, x = data.draw(st.sampled_from(cycles), label="exchange")
    kept[[i, k], [j, x]] = False
    kept[[i, k], [x, j]] = True
    swapped = Mask(kept, pattern)
    assert not swapped.violations()
    before = [scores[i, j], scores[k, x]]
    after = [scores[i, x], scores[k, j]]
    infinite = [sum(math.copysign(1, s) for s in side if math.isinf(s)) for side in (before, after)]
    finite = [math.fsum(s for s in side if math.isfinite(s)) for side in (before, after)]
    loss = (infinite[0] - infinite[1], finite[0] - finite[1])
    kept_sum = math.fsum(abs(s) for s in scores[kept] if math.isfinite(s))
    largest = max((abs(s) for s in scores.flat if math.isfinite(s)), default=0.0)
    any_infinite = not np.isfinite(scores).all()
    scale = max(kept_sum, largest if any_infinite else largest * 2**-20)
    certificate = certify(scores, swapped, potentials)
    if loss > (0.0, 2e-6 * scale):
        assert not certificate, (loss, certificate)
        assert not certificate.optimal
    if loss[0] == 0 and loss[1] <= 0.0:
        assert certificate, (loss, certificate)


@given(seed=SEEDS, noise=st.sampled_from([1e-3, 1.0, 1e3]))
def test_no_potentials_prove_a_worse_mask(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((4, 4))
    mask, potentials = optimum(torch.from_numpy(scores), "2:4T")
    cycles = four_cycles(mask.tensor.numpy())
    assume(cycles)
    i, k, j, x = cycles[rng.integers(len(cycles))]
    kept = mask.tensor.numpy().copy()
    kept[[i, k], [j, x]] = False
    kept[[i, k], [x, j]] = True
    assume(scores[i, j] + scores[k, x] - scores[i, x] - scores[k, j] > 1e-4)
    shaken = Potentials(
        potentials.rows + noise * torch.from_numpy(rng.standard_normal((1, 1, 1, 4))),
        potentials.cols + noise * torch.from_numpy(rng.standard_normal((1, 1, 1, 4))),
    )
    certificate = certify(scores, Mask(kept, "2:4T"), shaken)
    assert not certificate
    # Weak duality: any potentials bound the optimum from above.
    assert certificate.bound >= certify(scores, mask, potentials).objective - 1e-9
    assert certificate.gap > 0


SCORES = torch.tensor(
    [[9.0, 8.0, 1.0, 2.0], [7.0, 9.0, 2.0, 1.0], [1.0, 2.0, 9.0, 8.0], [2.0, 1.0, 7.0, 9.0]]
)
BEST = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)


def lines(potential: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 4), potential, dtype=torch.float64)


def potentials_of(u: float, v: float) -> Potentials:
    return Potentials(lines(u), lines(v))


def test_a_proof_by_hand() -> None:
    certificate = certify(SCORES, Mask(BEST, "2:4T"), potentials_of(5.0, 0.0))
    assert certificate.optimal
    assert certificate.feasible
    assert certificate.objective == certificate.bound == 66.0
    assert certificate.gap == certificate.worst_gap == certificate.worst_slackness == 0.0
    assert certificate.tiles == 1


def test_figures_of_a_failed_proof() -> None:
    certificate = certify(SCORES, Mask(~BEST, "2:4T"), potentials_of(5.0, 0.0))
    assert not certificate.optimal
    assert certificate.feasible
    assert (certificate.objective, certificate.bound) == (12.0, 66.0)
    assert certificate.gap == certificate.worst_gap == (66 - 12) / 12
    assert certificate.worst_slackness == pytest.approx(4 / 9)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e300, 1.0, -1.0])
@pytest.mark.parametrize("which", ["rows", "cols", "one row"])
def test_wrong_potentials_prove_nothing(wrong: float, which: str) -> None:
    right = potentials_of(5.0, 0.0)
    if which == "one row":
        rows = right.rows.clone()
        rows[..., 2] = 10 * wrong
        potentials = dataclasses.replace(right, rows=rows)
    else:
        potentials = dataclasses.replace(right, **{which: lines(10 * wrong)})
    assert not certify(SCORES, Mask(BEST, "2:4T"), potentials)
    assert not certify(SCORES, Mask(~BEST, "2:4T"), potentials)


@pytest.mark.parametrize(
    "kept",
    [
        torch.zeros(4, 4, dtype=torch.bool),
        torch.ones(4, 4, dtype=torch.bool),
        torch.tensor([[1, 1, 0, 0]] * 4, dtype=torch.bool),
        torch.tensor([[1, 1, 0, 0]] * 4, dtype=torch.bool).T,
    ],
    ids=["none", "all", "columns over-full", "rows over-full"],
)
def test_an_infeasible_mask_is_not_proved(kept: torch.Tensor) -> None:
    for scores in (SCORES, torch.zeros(4, 4), -SCORES):
        certificate = certify(scores, Mask(kept, "2:4T"), potentials_of(0.0, 0.0))
        assert not certificate.feasible
        assert not certificate


@pytest.mark.parametrize("scale", [2.0**-1060, 2.0**-900, 2.0**900, 2.0**1019])
def test_the_ends_of_the_double_range(scale: float) -> None:
    scores = SCORES.double() * scale
    potentials = potentials_of(5.0 * scale, 0.0)
    assert certify(scores, Mask(BEST, "2:4T"), potentials)
    certificate = certify(scores, Mask(~BEST, "2:4T"), potentials)
    assert certificate.worst_gap == (66 - 12) / 12
    assert not certificate


def test_infinite_scores_do_not_hide_a_loss_among_finite_ones() -> None:
    scores = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores.fill_diagonal_(math.inf)
    mask, potentials = optimum(scores, "2:4T")
    assert certify(scores, mask, potentials)
    for shift in (1, 2, 3):
        kept = torch.eye(4, dtype=torch.bool) | torch.eye(4, dtype=torch.bool).roll(shift, 1)
        value = scores[kept & scores.isfinite()].sum()
        best = scores[mask.tensor & scores.isfinite()].sum()
        assert bool(certify(scores, Mask(kept, "2:4T"), potentials)) == bool(value >= best)
    # The smallest loss there can be, far below the weight of one infinite score.
    near = torch.full((4, 4), 0.5, dtype=torch.float64).fill_diagonal_(math.inf)
    near[0, 1] += 1e-4
    mask, potentials = optimum(near, "2:4T")
    assert mask.tensor[0, 1]
    without = torch.eye(4, dtype=torch.bool) | torch.eye(4, dtype=torch.bool).roll(2, 1)
    assert not certify(near, Mask(without, "2:4T"), potentials)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 1), (5, 6), (9, 2), (10, 10)])
def test_ragged_tiles(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(shape, generator=generator)
    mask, potentials = optimum(scores, "2:4T")
    certificate = certify(scores, mask, potentials)
    assert certificate
    assert certificate.tiles == -(-shape[0] // 4) * -(-shape[1] // 4)
    # In a cropped tile a positive entry that is dropped, or a negative one added, is a loss.
    for row in range(shape[0]):
        for col in range(shape[1]):
            cropped = row >= shape[0] // 4 * 4 or col >= shape[1] // 4 * 4
            if cropped and abs(scores[row, col]) > 1e-3:
                changed = mask.tensor.clone()
                changed[row, col] = ~changed[row, col]
                assert not certify(scores, Mask(changed, "2:4T"), potentials)


def test_negative_potentials_of_a_cropped_tile_are_no_proof() -> None:
    scores = torch.full((3, 4), -1.0)
    nothing = Mask(torch.zeros(3, 4, dtype=torch.bool), "2:4T")
    two = Mask(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]]).bool(), "2:4T")
    for negative in (potentials_of(-1.0, 0.0), potentials_of(0.0, -1.0)):
        assert certify(scores, nothing, negative)
        certificate = certify(scores, two, negative)
        assert certificate.feasible
        assert not certificate


def test_a_line_of_a_cropped_tile_that_keeps_too_little_is_a_gap() -> None:
    """Every reduced score is 0: only what the potentials charge for the missing units tells."""
    nothing = Mask(torch.zeros(3, 4, dtype=torch.bool), "2:4T")
    for potentials in (potentials_of(1.0, 0.0), potentials_of(0.0, 1.0)):
        certificate = certify(torch.ones(3, 4), nothing, potentials)
        assert (certificate.feasible, certificate.worst_slackness) == (True, 0.0)
        assert (certificate.objective, certificate.bound) == (0.0, 8.0)
        assert not certificate


def test_stacked_and_convolution() -> None:
    weight = torch.randn(12, 8, 3, 3, generator=torch.Generator().manual_seed(2)).abs()
    for layout, groups in (("conv", 1), ("conv", 3), ("stacked", 1)):
        solution = solve(weight, "2:4T", layout=layout, groups=groups)
        assert solution.potentials is not None
        assert certify(weight, solution.mask, solution.potentials)
        other = certify(weight + weight.flip(0), solution.mask, solution.potentials)
        assert not other


@pytest.mark.parametrize("strip", [1, 50, 200, 1 << 20])
@pytest.mark.parametrize("shape", [(3, 21, 30), (1, 64, 16), (5, 8, 8), (2, 7, 3)])
def test_how_much_is_looked_at_in_one_go(
    shape: tuple[int, int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong weight in the last tile is found wherever the strips are cut."""
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.1
    solution = solve(scores, "2:4T", layout="stacked")
    assert solution.potentials is not None
    kept = solution.mask.tensor.clone()
    kept[-1, -1, kept[-1, -1].nonzero()[-1]] = False
    worse = Mask(kept, "2:4T", layout="stacked")
    monkeypatch.setattr(certificate_module, "STRIP", strip)
    found = certify(scores, solution.mask, solution.potentials)
    assert found
    _, rows, cols = shape
    assert found.tiles == shape[0] * -(-rows // 4) * -(-cols // 4)
    assert found.objective == pytest.approx(solution.objective, rel=1e-6)
    refused = certify(scores, worse, solution.potentials)
    assert not refused
    assert refused.feasible == bool(rows % 4 or cols % 4), "a cropped tile may keep less"


def test_bad_arguments() -> None:
    mask, potentials = Mask(BEST, "2:4T"), potentials_of(5.0, 0.0)
    with pytest.raises(MaskError, match=r"pattern 2:4; .* use verify"):
        certify(SCORES, Mask(BEST, "2:4"), potentials)
    with pytest.raises(ScoresError, match=r"scores of shape \(2, 4\) and a mask of shape \(4, 4\)"):
        certify(SCORES[:2], mask, potentials)
    with pytest.raises(MaskError, match=r"potentials.cols has shape \(4,\); \(1, 1, 1, 4\)"):
        certify(SCORES, mask, Potentials(potentials.rows, torch.zeros(4)))
    with pytest.raises(ScoresError, match="NaN"):
        certify(SCORES.where(BEST, math.nan), mask, potentials)
    with pytest.raises(ScoresError, match="int64"):
        certify(SCORES.long(), mask, potentials)


def test_empty() -> None:
    for shape in ((0, 4), (4, 0), (0, 0)):
        mask, potentials = optimum(torch.empty(shape), "2:4T")
        certificate = certify(torch.empty(shape), mask, potentials)
        assert certificate
        assert certificate.tiles == 0
        assert certificate.gap == 0.0
