"""Least squares for every output on its own support, from the Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch

from transposable.prune.conjugate import solve_conjugate

Algorithm = Literal["auto", "cholesky", "conjugate"]

BUDGET = 1 << 25
"""Entries of the systems that are factorised at once: 256 MiB in double precision."""

STEPS = 8
"""How often a ridge is raised tenfold before a system counts as without a solution."""

PRODUCTS = 60
"""Products of the weight with H that conjugate gradients are expected to cost, in operations of a
factorisation. Measured: 45 in single precision, three times as fast, for twice as many samples as
inputs; 124 for three quarters as many; 300 to 450 for a sixth to a third."""

NARROW = 1024
"""Up to so many inputs every system is factorised: that takes milliseconds, whatever its rank."""


def solve_supported(
    gram: torch.Tensor,
    cross: torch.Tensor,
    support: torch.Tensor,
    start: torch.Tensor,
    ridge: float = 0.0,
    algorithm: Algorithm = "auto",
    tolerance: float = 1e-5,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The best weights on a given support, one linear system for each output.

        min_v  v H v^T - 2 v g^T + r ||v - w||^2,   v_j = 0 outside the support,
        (H_SS + r I) v_S = g_S + r w_S

    Args:
        gram: H [groups, cols, cols], symmetric, positive semidefinite.
        cross: g [groups, rows, cols].
        support: bool [groups, rows, cols].
        start: w [groups, rows, cols], towards which the ridge pulls.
        ridge: r in units of the mean diagonal of H. Where a system cannot be factorised, the
            smallest of 1e-10, 1e-9, ... (if larger than this) that helps is taken for it: an input
            that was always zero then keeps its weight of ``start``.
        algorithm: "cholesky" factorises the system of every output; "conjugate" iterates on all
            outputs at once, see :func:`~transposable.prune.conjugate.solve_conjugate`; "auto" takes
            what is expected to be faster: at half density the latter from about 2,900 inputs on.
        tolerance: of the conjugate gradients, on the relative residual; the relative excess of the
            error is in the order of its square.

    Returns:
        v [groups, rows, cols], zero outside the support; and what to report: "algorithm", the
        largest "ridge" that was taken and, of conjugate gradients, the most "iterations" and the
        largest relative "residual" of an output.

    Complexity: k^3 / 3 operations for an output with k weights, or 2 cols^2 an iteration.

    Example:
        >>> x = torch.randn(50, 4, dtype=torch.double)
        >>> y = x @ torch.tensor([[1.0, 0, 2, 0]], dtype=torch.double).T
        >>> support = torch.tensor([[[True, False, True, False]]])
        >>> start = torch.zeros(1, 1, 4, dtype=torch.double)
        >>> solve_supported((x.T @ x)[None], (y.T @ x)[None], support, start)[0].round(decimals=6)
        tensor([[[1., 0., 2., 0.]]], dtype=torch.float64)
    """
    if algorithm == "auto":
        algorithm = cheaper(support)
    found = torch.zeros_like(start)
    info: dict[str, Any] = {"algorithm": algorithm, "ridge": ridge}
    if algorithm == "conjugate":
        info.update(iterations=0, residual=0.0)
    for group in range(gram.shape[0]):
        unit = float(gram[group].diagonal().mean())
        if unit == 0:  # no input was ever other than zero
            found[group] = torch.where(support[group], start[group], 0)
        elif algorithm == "conjugate":
            solved = solve_conjugate(
                gram[group], cross[group], support[group], start[group], ridge * unit, tolerance
            )
            found[group] = solved.weight
            info["iterations"] = max(info["iterations"], solved.iterations)
            info["residual"] = max(info["residual"], solved.residual)
        else:
            for rows, columns in _batches(support[group]):
                at = (rows.unsqueeze(1), columns)
                system = gram[group][columns.unsqueeze(2), columns.unsqueeze(1)]
                solution, taken = _solve(system, cross[group][at], start[group][at], ridge, unit)
                found[group][at] = solution
                info["ridge"] = max(info["ridge"], taken)
    return found, info


def cheaper(support: torch.Tensor) -> Algorithm:
    """Which algorithm is expected to be faster on a support [groups, rows, cols].

    Example:
        >>> cheaper(torch.ones(1, 8, 512, dtype=torch.bool))
        'cholesky'
    """
    groups, rows, cols = support.shape
    if cols <= NARROW:
        return "cholesky"
    factorising = float((support.sum(2).double() ** 3).sum()) / 3
    iterating = 2.0 * PRODUCTS * groups * rows * cols**2
    return "cholesky" if factorising <= iterating else "conjugate"


def _batches(support: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows [b] of equally many columns, with these [b, k]."""
    counts = support.sum(1)
    for count in sorted(set(counts.tolist())):
        if count == 0:
            continue
        rows = (counts == count).nonzero().squeeze(1)
        for part in rows.split(max(1, BUDGET // count**2)):
            yield part, support[part].nonzero()[:, 1].reshape(len(part), count)


def _solve(
    system: torch.Tensor, right: torch.Tensor, start: torch.Tensor, ridge: float, unit: float
) -> tuple[torch.Tensor, float]:
    solution = torch.empty_like(right)
    todo = torch.arange(len(system), device=system.device)
    taken = ridge
    for _ in range(STEPS + 1):
        shifted = system[todo]
        shifted.diagonal(dim1=1, dim2=2).add_(taken * unit)
        factor, info = torch.linalg.cholesky_ex(shifted)
        wanted = right[todo] + taken * unit * start[todo]
        value = torch.cholesky_solve(wanted.unsqueeze(2), factor).squeeze(2)
        good = (info == 0) & value.isfinite().all(1) & well_conditioned(factor)
        solution[todo[good]] = value[good]
        todo = todo[~good]
        if len(todo) == 0:
            return solution, taken
        taken = max(10 * taken, 1e-10)
    solution[todo] = start[todo]
    return solution, taken


def well_conditioned(factor: torch.Tensor) -> torch.Tensor:
    """Whether pivots stay above rounding: a singular system may pass as barely definite."""
    pivots = factor.diagonal(dim1=1, dim2=2)
    return pivots.amin(1) > 1e-6 * pivots.amax(1)
