"""Greedy: the walk, the repair, the local search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from score_families import make_scores
from strategies import WALKED, scores, tiles
from transposable import Exact, Greedy, Reference, SolverError, solve


def naive(block: list[list[float]], n: int) -> set[tuple[int, int]]:
    """Heavy to light, ties in row-major order, wherever row and column have room."""
    rows, cols = range(len(block)), range(len(block[0]))
    kept: set[tuple[int, int]] = set()
    for _, i, j in sorted((-block[i][j], i, j) for i in rows for j in cols):
        in_row = sum(1 for r, _ in kept if r == i)
        in_col = sum(1 for _, c in kept if c == j)
        if in_row < n and in_col < n:
            kept.add((i, j))
    return kept


@settings(max_examples=60)
@given(
    family=st.sampled_from(WALKED),
    m=st.integers(2, 9),
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
def test_the_walk(family: str, m: int, data: st.DataObject, dtype: torch.dtype) -> None:
    n = data.draw(st.integers(1, m - 1))
    block = make_scores(family, m, m, data.draw(st.integers(0, 10**6))).to(dtype)
    block = block.clamp(-60000, 60000)  # no infinities in float16
    kept = solve(block, f"{n}:{m}T", Greedy(repair=False, sweeps=0)).mask.tensor
    assert {(i, j) for i, j in kept.nonzero().tolist()} == naive(block.double().tolist(), n)


@settings(max_examples=30)
@given(matrix=tiles(6), sweeps=st.integers(1, 4))
def test_a_sweep_never_loses(matrix: torch.Tensor, sweeps: int) -> None:
    for pattern in ("2:6T", "4:6T"):
        before = solve(matrix, pattern, Greedy(sweeps=sweeps - 1)).objective
        after = solve(matrix, pattern, Greedy(sweeps=sweeps)).objective
        # Differences are taken in float32.
        assert after >= before - 1e-6 * matrix.double().abs().sum().item()


def gain_of_an_exchange(a: torch.Tensor, kept: torch.Tensor) -> float:
    """The greatest gain of any exchange (i, j), (k, l) -> (i, l), (k, j) in one tile."""
    gain = a[:, None, None, :] + a.T[None, :, :, None] - a[:, :, None, None] - a[None, None]
    allowed = kept[:, :, None, None] & kept[None, None]
    allowed &= ~kept[:, None, None, :] & ~kept.T[None, :, :, None]
    return float(torch.where(allowed, gain, 0.0).max())


@settings(max_examples=30)
@given(matrix=tiles(7, ("|gaussian|", "gaussian", "|ties|", "ulps"), down=1, across=1))
def test_no_exchange_is_left(matrix: torch.Tensor) -> None:
    kept = solve(matrix, "3:7T", Greedy(sweeps=1000)).mask.tensor
    assert gain_of_an_exchange(matrix.double(), kept) <= 1e-6


@settings(max_examples=40)
@given(matrix=scores(3, ("|gaussian|", "gaussian", "|ties|")))
def test_a_cropped_tile_is_maximal(matrix: torch.Tensor) -> None:
    """No entry that gains fits; and single exchanges make up the optimum when n = 1, one line."""
    kept = solve(matrix, "2:4T", Greedy()).mask.tensor
    room_row, room_col = kept.sum(1) < 2, kept.sum(0) < 2
    fits = room_row[:, None] & room_col & ~kept
    assert not (fits & (matrix > 0)).any()
    if 1 in matrix.shape:
        best = solve(matrix, "2:4T", Reference()).objective
        assert solve(matrix, "2:4T", Greedy()).objective == pytest.approx(best, abs=1e-6)


def test_losses_on_gaussian_tiles() -> None:
    """Kept magnitude lost against the optimum, for the walk, with repair, with local search."""
    matrix = make_scores("|gaussian|", 512, 512, 1)
    expected = {"2:4T": (1.5, 1.1, 0.08), "4:8T": (1.2, 0.77, 0.16), "8:16T": (0.9, 0.59, 0.17)}
    for pattern, losses in expected.items():
        best = solve(matrix, pattern, Exact()).objective
        solvers = (Greedy(repair=False, sweeps=0), Greedy(sweeps=0), Greedy())
        for solver, loss in zip(solvers, losses, strict=True):
            found = 100 * (1 - solve(matrix, pattern, solver).objective / best)
            assert found == pytest.approx(loss, rel=0.2), (pattern, str(solver))


@pytest.mark.parametrize(
    "options", [{"sweeps": -1}, {"sweeps": 1.5}, {"sweeps": True}, {"repair": 0}]
)
def test_a_wrong_option_is_an_error(options: dict[str, object]) -> None:
    with pytest.raises(SolverError, match=f"greedy: received {next(iter(options))}=.*default"):
        Greedy(**options)  # type: ignore[arg-type]
