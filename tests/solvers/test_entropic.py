"""Entropic: its error against the optimum, and that no scale of scores breaks it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from score_families import make_scores
from strategies import scores, tiles
from transposable import Entropic, Exact, Greedy, SolverError, solve


def loss(matrix: torch.Tensor, pattern: str, solver: Entropic | Greedy) -> float:
    """Percent of the optimal objective that is lost."""
    best = solve(matrix, pattern, Exact()).objective
    return 100 * (1 - solve(matrix, pattern, solver).objective / best)


@pytest.mark.parametrize(
    ("pattern", "most"), [("2:4T", 0.004), ("4:8T", 0.02), ("8:16T", 0.04), ("4:16T", 0.08)]
)
def test_error_on_gaussian_tiles(pattern: str, most: float) -> None:
    matrix = make_scores("|gaussian|", 512, 512, 1)
    assert 0 <= loss(matrix, pattern, Entropic()) < most


def test_more_iterations_and_a_larger_tau_come_closer() -> None:
    matrix = make_scores("|gaussian|", 256, 256, 2)
    losses = [
        loss(matrix, "4:8T", Entropic(iterations=i, tau=t, sweeps=0))
        for i, t in ((10, 4.0), (100, 12.0), (800, 40.0))
    ]
    assert losses[0] > 3 * losses[1] > 9 * losses[2] > 0


def test_it_adapts_to_columns_that_greed_gets_wrong() -> None:
    """Offsets of columns change no difference between masks, but they do mislead a greedy walk."""
    offsets = 20 * torch.arange(64.0).remainder(8)
    matrix = make_scores("|gaussian|", 64, 64, 3) + offsets
    entropic, greedy = (
        solve(matrix, "4:8T", s).objective for s in (Entropic(sweeps=0), Greedy(sweeps=0))
    )
    best = solve(matrix, "4:8T", Exact()).objective
    free = offsets.sum().item() * 32  # what every mask keeps of the offsets
    assert best - free > 0
    assert entropic - free > 0.9 * (best - free)
    assert greedy <= entropic


@settings(max_examples=40)
@given(matrix=tiles(4))
def test_every_family_stays_close(matrix: torch.Tensor) -> None:
    best = solve(matrix, "2:4T", Exact()).objective
    found = solve(matrix, "2:4T", Entropic()).objective
    assert best - found <= 0.02 * matrix.double().abs().sum().item()


@settings(max_examples=40)
@given(matrix=scores(3, ("|gaussian|", "gaussian", "|ties|", "|row scales|")))
def test_a_cropped_tile_is_filled_without_local_search(matrix: torch.Tensor) -> None:
    """Rounding takes every entry that fits and does not lose, whatever its potential."""
    kept = solve(matrix, "2:4T", Entropic(sweeps=0)).mask.tensor
    fits = (kept.sum(1) < 2)[:, None] & (kept.sum(0) < 2) & ~kept
    assert not (fits & (matrix >= 0)).any()
    assert not (kept & (matrix < 0)).any()


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0},
        {"iterations": 2.0},
        {"tau": 0},
        {"tau": -1.0},
        {"tau": float("nan")},
        {"tau": 1e9},
        {"tau": "16"},
        {"sweeps": -1},
    ],
)
def test_a_wrong_option_is_an_error(options: dict[str, object]) -> None:
    with pytest.raises(SolverError, match=f"entropic: received {next(iter(options))}=.*default"):
        Entropic(**options)  # type: ignore[arg-type]
