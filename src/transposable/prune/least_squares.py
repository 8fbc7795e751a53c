"""Least squares for every output on its own support, from the Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch

BUDGET = 1 << 25
"""Entries of the systems that are factorised at once: 256 MiB in double precision."""

STEPS = 8
"""How often a ridge is raised tenfold before a system counts as without a solution."""


def solve_supported(
    gram: torch.Tensor,
    cross: torch.Tensor,
    support: torch.Tensor,
    start: torch.Tensor,
    ridge: float = 0.0,
) -> tuple[torch.Tensor, float]:
    """The best weights on a given support, one small linear system for each output.

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

    Returns:
        v [groups, rows, cols], zero outside the support, and the largest ridge that was taken.

    Complexity: k^3 / 3 operations for an output with k weights.

    Example:
        >>> x = torch.randn(50, 4, dtype=torch.double)
        >>> y = x @ torch.tensor([[1.0, 0, 2, 0]], dtype=torch.double).T
        >>> support = torch.tensor([[[True, False, True, False]]])
        >>> start = torch.zeros(1, 1, 4, dtype=torch.double)
        >>> solve_supported((x.T @ x)[None], (y.T @ x)[None], support, start)[0].round(decimals=6)
        tensor([[[1., 0., 2., 0.]]], dtype=torch.float64)
    """
    found = torch.zeros_like(start)
    largest = ridge
    for group in range(gram.shape[0]):
        unit = float(gram[group].diagonal().mean())
        if unit == 0:  # no input was ever other than zero
            found[group] = torch.where(support[group], start[group], 0)
            continue
        for rows, columns in _batches(support[group]):
            at = (rows.unsqueeze(1), columns)
            system = gram[group][columns.unsqueeze(2), columns.unsqueeze(1)]
            solution, taken = _solve(system, cross[group][at], start[group][at], ridge, unit)
            found[group][at] = solution
            largest = max(largest, taken)
    return found, largest


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
        good = (info == 0) & value.isfinite().all(1) & _well_conditioned(factor)
        solution[todo[good]] = value[good]
        todo = todo[~good]
        if len(todo) == 0:
            return solution, taken
        taken = max(10 * taken, 1e-10)
    solution[todo] = start[todo]
    return solution, taken


def _well_conditioned(factor: torch.Tensor) -> torch.Tensor:
    """Whether pivots stay above rounding: a singular system may pass as barely definite."""
    pivots = factor.diagonal(dim1=1, dim2=2)
    return pivots.amin(1) > 1e-6 * pivots.amax(1)
