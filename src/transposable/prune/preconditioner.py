"""What makes conjugate gradients on a support converge: the strongest directions of H, solved."""

from __future__ import annotations

import torch

RANK = 256
"""Directions that are solved exactly, at most."""

OVERSAMPLED = 16
PASSES = 4
"""Of the subspace iteration that finds them."""


class Preconditioner:
    """Applies M^-1 to rows that live on their supports, M being H but for its weak directions.

        H ~ U diag(l) U^T + m I,   M_S = m (I + Z_S Z_S^T),   Z = U diag(sqrt(l / m - 1))
        M_S^-1 r = (r - Z_S (I + Z_S^T Z_S)^-1 Z_S^T r) / m

    U are the leading eigenvectors of H and m the eigenvalue where they end, or if that is more a
    few ten-thousandths of the first, so that M_S^-1 H_SS has no eigenvalue above about 1, where
    H_SS has some in the order of its size. The factor 1 / m changes no iterate and is left out.
    Each row has a small factorisation of its own.

    Args:
        leading: Z [cols, k] of :func:`leading_directions`.
        live: supports, float32 [rows, cols].

    Complexity: 2 k^2 operations for a weight of the support, once, and 4 rows cols k each time;
    memory k^2 floats for each row.

    Source: Frangella, Tropp and Udell, "Randomized Nyström Preconditioning", 2023, here restricted
    to a support.

    Example:
        >>> z = torch.tensor([[2.0], [0.0]])
        >>> Preconditioner(z, torch.ones(1, 2)).apply(torch.tensor([[5.0, 3.0]]))
        tensor([[1., 3.]])
    """

    def __init__(self, leading: torch.Tensor, live: torch.Tensor) -> None:
        self._leading, self._live = leading, live
        rank = leading.shape[1]
        factors = leading.new_empty(len(live), rank, rank)
        for row, kept in enumerate(live):
            part = leading[kept.nonzero().squeeze(1)]
            torch.mm(part.T, part, out=factors[row])
        factors.diagonal(dim1=1, dim2=2).add_(1)
        self._factors = torch.linalg.cholesky_ex(factors)[0]

    def apply(self, residual: torch.Tensor) -> torch.Tensor:
        """M^-1 r for r [rows, cols], zero outside the supports."""
        weighed = (residual @ self._leading).unsqueeze(2)
        solved = torch.cholesky_solve(weighed, self._factors).squeeze(2)
        return torch.addmm(residual, solved, self._leading.T, alpha=-1).mul_(self._live)

    def keep(self, rows: torch.Tensor) -> Preconditioner:
        """The same for some of the rows."""
        part = object.__new__(Preconditioner)
        part._leading, part._live = self._leading, self._live[rows]
        part._factors = self._factors[rows]
        return part


def leading_directions(scaled: torch.Tensor, rank: int | None = None) -> torch.Tensor:
    """Z [cols, k] for a symmetric, positive semidefinite matrix [cols, cols], in float32.

    Args:
        scaled: H in the units of its diagonal.
        rank: k; default an eighth of the columns, at most 256.

    Complexity: 2 cols^2 (k + 16) operations for each of 5 products.

    Example:
        >>> leading_directions(torch.diag(torch.tensor([9.0, 3.0, 1.0])), 1).abs().round(decimals=3)
        tensor([[1.4140],
                [0.0000],
                [0.0000]])
    """
    cols = len(scaled)
    rank = min(RANK, cols // 8) if rank is None else rank
    draw = torch.Generator().manual_seed(0)
    basis = torch.randn(cols, min(cols, rank + OVERSAMPLED), generator=draw).to(scaled)
    for _ in range(PASSES):
        basis = torch.linalg.qr(scaled @ basis).Q
    values, rotation = torch.linalg.eigh(basis.T @ (scaled @ basis))
    values, rotation = values.flip(0), rotation.flip(1)
    # With fewer samples than directions the spectrum falls to rounding. To precondition down to
    # there would lose all digits: M^-1 r loses as many as l / m has.
    floor = torch.finfo(scaled.dtype).eps ** 0.5 * values[0]
    end = values[min(rank, len(values) - 1)].clamp(min=floor)
    strength = (values[:rank] / end - 1).clamp(min=0).sqrt()
    leading: torch.Tensor = (basis @ rotation[:, :rank]) * strength
    return leading
