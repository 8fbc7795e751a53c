"""The exact solver against the min-cost flow of OR-tools, on every tile.

tests/test_isa.py runs this file again under every instruction-set path.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import transposable
from oracle import assert_optimal
from score_families import FAMILIES, INFINITE, make_scores, tiles
from transposable import Exact, Pattern, Potentials, Solution, Status, certify, find_mask, solve

SMALL = [(n, m) for m in range(2, 9) for n in range(1, m)]
LARGE = [
    *((n, 12) for n in (1, 5, 6, 11)),
    *((n, 16) for n in (1, 4, 8, 15)),
    *((n, 24) for n in (7, 12)),
    *((n, 32) for n in (1, 8, 16, 31)),
    *((n, 48) for n in (5, 24)),
    *((n, 64) for n in (1, 16, 32, 63)),
]


def prove(scores: np.ndarray, pattern: Pattern) -> Solution:
    """Solve [tiles, rows, cols]; status and certificate must both say optimal."""
    solution = solve(scores, pattern, Exact(), layout="stacked")
    assert solution.status is Status.OPTIMAL
    assert solution.mask.violations() == 0
    assert isinstance(solution.potentials, Potentials)
    certificate = certify(scores, solution.mask, solution.potentials)
    assert certificate.optimal, certificate
    return solution


def check(scores: np.ndarray, n: int, m: int, what: str) -> None:
    """Signed and by magnitude: every tile is as good as the oracle's."""
    pattern = Pattern(n, m, "transposable")
    for kind, wanted, kept in (
        ("signed", scores, prove(scores, pattern).mask.array),
        ("magnitude", np.abs(scores), find_mask(scores, pattern, layout="stacked").array),
    ):
        if kind == "magnitude" and (scores >= 0).all():
            continue
        for index, tile in enumerate(wanted):
            assert_optimal(tile, kept[index], n, m, f"{what} {pattern} {kind} tile {index}")


@pytest.mark.parametrize(("n", "m"), SMALL, ids=lambda x: str(x))
def test_every_small_pattern_on_every_family(n: int, m: int) -> None:
    for name in FAMILIES:
        check(tiles(name, n, m, 3), n, m, name)


@pytest.mark.parametrize("name", FAMILIES)
def test_large_patterns(name: str) -> None:
    for n, m in LARGE if name in ("gaussian", "ties") else LARGE[::3]:
        check(tiles(name, n, m, 1), n, m, name)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (8, 16), (16, 32)], ids=lambda x: str(x))
@pytest.mark.parametrize("name", ["gaussian", "ties", "int4 grid", "row scales", "heavy tail"])
def test_many_tiles_of_the_common_patterns(name: str, n: int, m: int) -> None:
    check(tiles(name, 7, m, 1024 // m), n, m, name)


@pytest.mark.parametrize("name", ["gaussian", "signed offset", "ties", "zeros", "infinities"])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 2), (2, 4), (3, 4), (5, 8), (8, 16)], ids=lambda x: str(x)
)
def test_ragged_shapes(name: str, n: int, m: int) -> None:
    pattern = Pattern(n, m, "transposable")
    sides = sorted({1, n, m - 1, m, m + 1, 2 * m + n})
    for rows in sides:
        for cols in sides:
            scores = make_scores(name, rows, cols, seed=rows * cols).numpy()
            kept = prove(scores[None], pattern).mask.array[0]
            for top in range(0, rows, m):
                for left in range(0, cols, m):
                    at = np.s_[top : top + m, left : left + m]
                    what = f"{name} {pattern} {rows}x{cols} at {top}, {left}"
                    assert_optimal(scores[at], kept[at], n, m, what)


def test_a_cropped_tile_keeps_no_negative_score() -> None:
    scores = -np.ones((3, 4), np.float32)
    assert not solve(scores, "2:4T").mask.array.any()
    assert solve(-scores, "2:4T").objective == 6.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_is_read_exactly(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(4, 16, 16, generator=generator).to(dtype)
    kept = solve(scores, "3:8T", layout="stacked").mask.tensor
    for b in range(4):
        for top in (0, 8):
            for left in (0, 8):
                at = np.s_[b, top : top + 8, left : left + 8]
                assert_optimal(scores.double().numpy()[at], kept.numpy()[at], 3, 8)


@pytest.mark.parametrize("scale", [1e-320, 1e-310, 1e-300, 1e300])
def test_the_range_of_doubles(scale: float) -> None:
    scores = tiles("gaussian", 0, 8, 4).astype(np.float64) * scale
    solution = prove(scores, Pattern(4, 8, "transposable"))
    for tile, kept in zip(scores, solution.mask.array, strict=True):
        assert_optimal(tile, kept, 4, 8)


def transposed(tile: np.ndarray) -> np.ndarray:
    return tile.swapaxes(1, 2)


@given(
    seed=st.integers(0, 2**32 - 1),
    nm=st.sampled_from([*SMALL, (8, 16), (16, 32)]),
    family=st.sampled_from(sorted(set(FAMILIES) - set(INFINITE))),
)
def test_metamorphic(seed: int, nm: tuple[int, int], family: str) -> None:
    """Objectives under transposition, permutation, scaling and complement, without the oracle."""
    n, m = nm
    rng = np.random.default_rng(seed)
    scores = tiles(family, seed, m, 2).astype(np.float64)
    pattern = Pattern(n, m, "transposable")
    original = prove(scores, pattern)
    slack = 1e-6 * float(np.abs(scores).sum()) + 1e-320

    def objective(changed: np.ndarray, by: Pattern = pattern) -> float:
        return prove(np.ascontiguousarray(changed), by).objective

    assert objective(transposed(scores)) == pytest.approx(original.objective, abs=slack)
    shuffled = scores[:, rng.permutation(m)][:, :, rng.permutation(m)]
    assert objective(shuffled) == pytest.approx(original.objective, abs=slack)
    scaled = objective(scores * 2.0**40)
    assert scaled == pytest.approx(original.objective * 2.0**40, abs=slack * 2.0**40)
    # Pruning the least is keeping the most: the complement is optimal for -scores and m - n.
    complement = objective(-scores, Pattern(m - n, m, "transposable"))
    assert float(scores.sum()) + complement == pytest.approx(original.objective, abs=slack)
    # A constant for every row and column shifts every mask's objective by the same amount.
    offset = rng.standard_normal((1, m, 1)) + rng.standard_normal((1, 1, m))
    unit = scores / max(float(np.abs(scores).max()), 1e-300)
    shift = 2 * n / m * float(offset.sum())  # two tiles
    before, after = objective(unit), objective(unit + offset)
    assert after - shift == pytest.approx(before, abs=1e-6 * float(np.abs(unit + offset).sum()))


@given(
    data=st.data(),
    nm=st.sampled_from([(1, 2), (1, 3), (2, 3), (2, 4), (3, 5)]),
    values=st.sampled_from(
        [
            st.integers(-3, 3).map(float),
            st.floats(-1e3, 1e3, width=32),
            st.floats(allow_nan=False, width=32),
            st.floats(-1e290, 1e290),
        ]
    ),
)
def test_arbitrary_tiles(
    data: st.DataObject, nm: tuple[int, int], values: st.SearchStrategy
) -> None:
    n, m = nm
    rows = data.draw(st.integers(1, m), label="rows")
    cols = data.draw(st.integers(1, m), label="cols")
    flat = data.draw(st.lists(values, min_size=rows * cols, max_size=rows * cols), label="scores")
    scores = np.array(flat).reshape(rows, cols)
    kept = prove(scores[None], Pattern(n, m, "transposable")).mask.array[0]
    assert_optimal(scores, kept, n, m)


def test_threads_change_nothing() -> None:
    scores = np.concatenate([tiles(name, 1, 8, 16) for name in FAMILIES])
    alone = solve(scores, "4:8T", layout="stacked", threads=1)
    for threads in (2, 3, 16):
        several = solve(scores, "4:8T", layout="stacked", threads=threads)
        assert several.mask == alone.mask
        assert torch.equal(several.potentials.rows, alone.potentials.rows)
        assert torch.equal(several.potentials.cols, alone.potentials.cols)


def test_find_mask_and_solve_agree() -> None:
    scores = np.abs(tiles("ties", 2, 8, 40))
    found = find_mask(scores, "4:8T", layout="stacked")
    solved = solve(scores, "4:8T", layout="stacked")
    by_found = np.where(found.array, scores, 0).sum((1, 2), dtype=np.float64)
    by_solved = np.where(solved.mask.array, scores, 0).sum((1, 2), dtype=np.float64)
    np.testing.assert_array_equal(by_found, by_solved)


@pytest.mark.parametrize("shape", [(0, 0), (0, 8), (8, 0), (1, 1), (1, 8), (8, 1)])
def test_sizes_zero_and_one(shape: tuple[int, int]) -> None:
    scores = torch.ones(shape)
    solution = solve(scores, "2:4T")
    assert solution.status is Status.OPTIMAL
    assert solution.mask.shape == shape
    assert solution.gap == 0.0
    kept = {(1, 1): 1.0, (1, 8): 4.0, (8, 1): 4.0}.get(shape, 0.0)
    assert solution.objective == solution.bound == kept
    assert certify(scores, solution.mask, solution.potentials)


def test_the_gap_of_a_gaussian_matrix() -> None:
    scores = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).double().abs()
    for pattern in ("2:4T", "4:8T", "16:32T", "32:64T"):
        solution = solve(scores, pattern)
        assert 0 <= solution.gap < 1e-6
        assert solution.stats["solver"] == "exact"
        assert solution.stats["tiles"] == (256 // solution.mask.pattern.m) ** 2
        assert solution.bound >= solution.objective * (1 - 1e-12)


def test_the_solver_class_is_public() -> None:
    assert transposable.Exact() == Exact()
    assert repr(Exact()) == "Exact()"
