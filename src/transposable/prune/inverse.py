"""The inverse of H as a triangular factor, and the weights that fit best without a mask."""

from __future__ import annotations

import torch

from transposable.errors import MethodError
from transposable.prune.least_squares import STEPS, well_conditioned
from transposable.prune.problem import LayerProblem


def inverse_factor(problem: LayerProblem, damping: float) -> tuple[torch.Tensor, float]:
    """The upper triangular U with (H + d I)^-1 = U^T U, for which column j knows only j, j+1, ...

        U_jj^2 = [((H + d I)_FF)^-1]_jj,   F = {j, j+1, ...}

    Args:
        problem: with H [groups, cols, cols].
        damping: d in units of the mean diagonal of H, raised tenfold (from 1e-10) as long as H is
            singular to rounding. An input that was always zero counts as one of power 1 if d = 0.

    Returns:
        U [groups, cols, cols] and the damping that was taken.

    Raises:
        MethodError: if no damping makes H positive definite: it is not finite.

    Complexity: 2/3 cols^3 operations.

    Example:
        >>> import torch
        >>> from transposable.prune.reading import Reading
        >>> from torch import nn
        >>> from transposable.prune.moments import Moments
        >>> layer, x = nn.Linear(3, 2).double(), torch.randn(9, 3, dtype=torch.double)
        >>> moments = Moments(Reading.of(layer), x.device)
        >>> moments.add(layer, x, layer(x).detach() - layer.bias.detach())
        >>> from transposable import Pattern
        >>> problem = LayerProblem.of("a", layer.weight.detach()[None], moments,
        ...     Pattern.parse("2:4"), "auto", centred=False, keep_zeros=False)
        >>> factor, _ = inverse_factor(problem, 0.0)
        >>> torch.allclose(factor.mT @ factor, problem.gram.inverse())
        True
    """
    taken = damping
    for _ in range(STEPS + 1):
        # H = R R^T with R upper triangular is a Cholesky factorisation from the last column on.
        shifted = problem.gram.flip(1, 2)
        diagonal = shifted.diagonal(dim1=1, dim2=2)
        diagonal += taken * problem.scale
        diagonal.masked_fill_(diagonal == 0, 1)
        lower, info = torch.linalg.cholesky_ex(shifted)
        if bool(((info == 0) & well_conditioned(lower)).all()):
            return _invert(lower.flip(1, 2)), taken
        taken = max(10 * taken, 1e-10)
    raise MethodError(
        f"layer {problem.name!r}: the Gram matrix of its inputs has no factorisation even with a "
        f"damping of {taken:g}; look for NaN or infinity in the calibration data"
    )


def _invert(upper: torch.Tensor) -> torch.Tensor:
    identity = torch.eye(upper.shape[1], dtype=upper.dtype, device=upper.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(
        upper, identity.expand_as(upper), upper=True
    )
    return inverse


def unconstrained(problem: LayerProblem, factor: torch.Tensor) -> torch.Tensor:
    """The weights [groups, rows, cols] that a method without targets of its own prunes.

        V = argmin f(V) + d ||V - W||^2 = W + (G - W H) (H + d I)^-1

    That is W itself, but where the wanted outputs are those of other inputs (sequential pruning).

    Args:
        problem: the layer.
        factor: of :func:`inverse_factor`.

    Complexity: 2 rows cols^2 operations, or three times as many.
    """
    missing = problem.cross - problem.weight @ problem.gram
    rounding = 1e4 * torch.finfo(missing.dtype).eps * problem.cross.abs().amax()
    if bool(missing.abs().amax() <= rounding):
        return problem.weight.clone()
    return problem.weight + missing @ factor.mT @ factor
