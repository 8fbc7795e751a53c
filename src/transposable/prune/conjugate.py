"""Least squares on the support by conjugate gradients: one product with H serves all outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from transposable.prune.preconditioner import Preconditioner, leading_directions

CHUNK = 1 << 24
"""Entries of the largest matrix of vectors at once: 128 MiB in double precision."""

INNER = 1e-5
"""How far one run in single precision reduces a residual before it is taken anew in double."""

LIMIT = 2000
"""Iterations after which a row is left as it is."""


@dataclass(frozen=True, slots=True)
class Conjugate:
    """What :func:`solve_conjugate` found.

    Attributes:
        weight: v [rows, cols], zero outside the support.
        iterations: the most that a row took.
        residual: the largest that remained of any row, relative to its right side.
    """

    weight: torch.Tensor
    iterations: int
    residual: float


def solve_conjugate(
    gram: torch.Tensor,
    cross: torch.Tensor,
    support: torch.Tensor,
    start: torch.Tensor,
    ridge: float = 0.0,
    tolerance: float = 1e-5,
    limit: int = LIMIT,
) -> Conjugate:
    """The best weights on a support, by preconditioned conjugate gradients on all rows at once.

        (H_SS + r I) v_S = g_S + r w_S   until   ||D^-1/2 residual|| <= t ||D^-1/2 (g_S + r w_S)||

    with D = diag(H) + r, from v = w. In units of D, the strongest directions of H precondition, see
    :class:`~transposable.prune.preconditioner.Preconditioner`. Directions are kept in single
    precision; the residual is taken anew in the precision of H and corrected until it satisfies
    the tolerance, or no longer shrinks. No row ends worse than it started.

    Args:
        gram: H [cols, cols], symmetric, positive semidefinite; it may be singular.
        cross: g [rows, cols].
        support: bool [rows, cols].
        start: w [rows, cols], where the search starts and towards which the ridge pulls.
        ridge: r, in the units of H. An input without power keeps its weight of ``start``; with
            r = 0 so does every direction that H does not see.
        tolerance: t.
        limit: iterations after which a row is left as it is.

    Complexity: 2 rows cols^2 operations an iteration in single precision, and as many in the
    precision of H for each of the few residuals; once 2 k^2 for each weight that is kept, k being
    the directions of the preconditioner; memory cols^2 floats and a few chunks of rows.

    Source: Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952;
    on all rows at once: ALPS (Meng et al., NeurIPS 2024), algorithm 2.

    Example:
        >>> x = torch.randn(50, 4, dtype=torch.double)
        >>> y = x @ torch.tensor([[1.0, 0, 2, 0]], dtype=torch.double).T
        >>> support = torch.tensor([[True, False, True, False]])
        >>> start = torch.zeros(1, 4, dtype=torch.double)
        >>> found = solve_conjugate(x.T @ x, y.T @ x, support, start)
        >>> found.weight.round(decimals=4), found.residual < 1e-5
        (tensor([[1., 0., 2., 0.]], dtype=torch.float64), True)
    """
    power = gram.diagonal() + ridge
    # Less is what rounding leaves of an input that never changed, when its mean is subtracted.
    seen = power > 1e3 * torch.finfo(power.dtype).eps * power.amax()
    scale = torch.where(seen, power, 1).rsqrt() * seen
    scaled = _scaled(gram, scale)
    leading = leading_directions(scaled)
    found = torch.empty_like(start)
    most, worst = 0, 0.0
    rows = max(1, CHUNK // gram.shape[0])
    for first in range(0, start.shape[0], rows):
        part = slice(first, first + rows)
        system = _System(
            gram, scaled, leading, scale, cross[part], support[part], start[part], ridge
        )
        found[part], iterations, residual = system.solve(tolerance, limit)
        most, worst = max(most, iterations), max(worst, residual)
    return Conjugate(found, most, worst)


class _System:
    """Some rows: v = w + D^-1/2 z, and the correction z is what is searched for."""

    def __init__(
        self,
        gram: torch.Tensor,
        scaled: torch.Tensor,
        leading: torch.Tensor,
        scale: torch.Tensor,
        cross: torch.Tensor,
        support: torch.Tensor,
        start: torch.Tensor,
        ridge: float,
    ) -> None:
        self.gram, self.scaled, self.scale, self.ridge = gram, scaled, scale, ridge
        self.leading = leading
        self.live = support & (scale > 0)
        self.start = torch.where(support, start, 0)
        self.right = cross + ridge * self.start

    def solve(self, tolerance: float, limit: int) -> tuple[torch.Tensor, int, float]:
        """Weights, the most iterations of a row, the largest relative residual."""
        value = self.start.clone()
        residual = self.residual(value)
        at_start = self.objective(value, residual)
        whole = torch.linalg.vector_norm(self.right * self.scale * self.live, dim=1)
        left = torch.linalg.vector_norm(residual, dim=1)
        at_first, iterations = left.clone(), 0
        todo = held = (left > tolerance * whole).nonzero().squeeze(1)
        solver: Preconditioner | None = None
        while len(todo) and iterations < limit:
            unit = left[todo].unsqueeze(1)
            target = (0.5 * tolerance * whole[todo] / left[todo]).clamp(min=INNER)
            if solver is None:
                held, solver = todo, Preconditioner(self.leading, self.live[todo].float())
            else:
                same = torch.isin(held, todo)
                held, solver = held[same], solver.keep(same)
            step, taken = self.correct(
                (residual[todo] / unit).float(),
                self.live[todo],
                solver,
                target,
                limit - iterations,
            )
            iterations += taken
            value[todo] += step * unit * self.scale
            residual[todo] = self.residual(value[todo], todo)
            before, left[todo] = left[todo], torch.linalg.vector_norm(residual[todo], dim=1)
            todo = todo[(left[todo] > tolerance * whole[todo]) & (left[todo] < 0.5 * before)]
        worse = ~(self.objective(value, residual) <= at_start)
        value[worse], left[worse] = self.start[worse], at_first[worse]
        return value, iterations, float((left / torch.where(whole > 0, whole, 1)).max())

    def residual(self, value: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """D^-1/2 (g + r w - v (H + r)) on the support, in full precision."""
        every = rows is None
        right = self.right if every else self.right[rows]
        live = self.live if every else self.live[rows]
        left = right - value @ self.gram
        return left.sub_(value, alpha=self.ridge).mul_(self.scale).mul_(live)

    def objective(self, value: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """v H v^T - 2 v g^T + r (||v||^2 - 2 v w^T) by row: what is minimised, up to a constant.

        v (H + r) is the right side less the residual wherever v is not fixed; dead inputs, where
        both vanish, add nothing.
        """
        moved = torch.where(self.scale > 0, residual / self.scale, 0)
        return -(value * (self.right + moved) * self.live).sum(1)

    def correct(
        self,
        residual: torch.Tensor,
        live: torch.Tensor,
        solver: Preconditioner,
        target: torch.Tensor,
        limit: int,
    ) -> tuple[torch.Tensor, int]:
        """z with S D^-1/2 (H + r) D^-1/2 z = residual to the target of each row, in float32."""
        result = torch.zeros_like(residual)
        rows = torch.arange(len(residual), device=residual.device)
        goal = target.float().square()
        step, direction = torch.zeros_like(residual), solver.apply(residual)
        slope = (residual * direction).sum(1)
        best = residual.square().sum(1)
        taken = 0
        while taken < limit:
            taken += 1
            product = (direction @ self.scaled).mul_(live)
            curve = (direction * product).sum(1)
            # No curvature: what is left of this direction is rounding.
            move = torch.where(curve > 0, slope / curve, 0).unsqueeze(1)
            step.addcmul_(direction, move)
            residual.addcmul_(product, move, value=-1)
            power = residual.square().sum(1)
            best = torch.minimum(best, power)
            # Far above its own best a residual is lost to rounding: start anew, outside.
            going = (power > goal) & (curve > 0) & (power < 1e8 * best)
            if not bool(going.any()):
                break
            if 4 * int(going.count_nonzero()) < 3 * len(going):
                result[rows[~going]] = step[~going]
                rows, goal, live, best = rows[going], goal[going], live[going], best[going]
                step, residual, direction = step[going], residual[going], direction[going]
                slope, solver = slope[going], solver.keep(going)
            eased = solver.apply(residual)
            before, slope = slope, (residual * eased).sum(1)
            turn = torch.where(before > 0, slope / before, 0).unsqueeze(1)
            direction.mul_(turn).add_(eased)
        result[rows] = step
        return result, taken


def _scaled(gram: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """D^-1/2 (H + r) D^-1/2 in float32, a few rows at a time; its diagonal is 1."""
    result = torch.empty_like(gram, dtype=torch.float32)
    for first in range(0, len(gram), max(1, CHUNK // len(gram))):
        part = slice(first, first + max(1, CHUNK // len(gram)))
        result[part] = gram[part] * scale[part].unsqueeze(1) * scale
    result.diagonal().copy_(scale > 0)
    return result
