"""How near to the old weights the new ones should stay: chosen by what was not fitted."""

from __future__ import annotations

from typing import Final

import torch

from transposable.prune.least_squares import solve_supported
from transposable.prune.problem import LayerProblem

CANDIDATES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""In units of the mean diagonal of H over half of the data."""

ROWS: Final = 24
"""Outputs of a group that decide for all of them."""

WITHOUT_HALVES: Final = 1e-2
"""Where the data is a single sample: the damping of SparseGPT."""


def best_ridge(problem: LayerProblem, support: torch.Tensor) -> float:
    """The ridge with which weights fitted to one half of the data serve the other half best.

        argmin over r of  f_2(V_1(r)) + f_1(V_2(r)),   V_i(r) = argmin f_i(V) + r ||V - W||^2

    Args:
        problem: of a layer, with its halves.
        support: bool [groups, rows, cols], weights that may be other than zero.

    Returns:
        r in units of the mean diagonal of H over all of the data.

    Complexity: two solutions for each candidate and at most 24 outputs of a group.
    """
    # One sample less its mean is nothing.
    if len(problem.halves) < 2 or any(half.count <= half.centred for half in problem.halves):
        return WITHOUT_HALVES
    rows = problem.weight.shape[1]
    chosen = torch.arange(rows) if rows <= ROWS else torch.linspace(0, rows - 1, ROWS).long()
    chosen = chosen.to(support.device)
    support = support[:, chosen]
    start = problem.weight[:, chosen] * support
    errors = []
    for candidate in CANDIDATES:
        error = 0.0
        for fitted, judged in (problem.halves, problem.halves[::-1]):
            cross = fitted.cross[:, chosen]
            weight, _ = solve_supported(fitted.gram, cross, support, start, candidate)
            error += float(judged.error_of(weight, chosen).sum())
        errors.append(error)
    best = CANDIDATES[errors.index(min(errors))]
    return best / 2  # all of the data has twice the diagonal
