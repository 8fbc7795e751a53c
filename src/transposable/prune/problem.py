"""LayerProblem: the weights of one layer, and how well others would do its work."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from transposable.api import find_mask
from transposable.pattern import Pattern
from transposable.prune.moments import Moments
from transposable.prune.reading import Reading
from transposable.solvers import Solver


@dataclass
class LayerProblem:
    """Minimise the mean squared error of one layer's output over weights of a pattern.

        f(V) = sum_s ||y_s - V x_s||^2 = tr(V H V^T) - 2 tr(V G^T) + P

    with y the outputs of the dense layer. With :attr:`centred`, x and y are taken less their means,
    which is what remains when the bias is chosen best.

    Attributes:
        name: of the layer.
        weight: W [groups, rows, cols], float64.
        reading: how the layer is read.
        pattern: what the weights must satisfy.
        solver: finds the masks.
        gram: H [groups, cols, cols], float64.
        cross: G [groups, rows, cols], float64.
        power: P [groups, rows], float64.
        count: number of samples.
        means: of x [groups, cols] and of y [groups, rows].
        centred: whether the sums are less the means.
        allowed: bool [groups, rows, cols], weights that may be other than zero.
        halves: the same problem on each half of the data, for a method with ``needs_halves``.
        module: the dense layer, to run it on samples.
        samples: batches of (inputs, wanted outputs less the bias), as the layer gets and gives
            them, for a method with ``needs_samples``.

    Example:
        >>> from transposable.prune import Wanda, prune_model
        >>> class Printed(Wanda):
        ...     def prune(self, problem):
        ...         print(problem.name, list(problem.weight.shape), problem.count)
        ...         return super().prune(problem)
        >>> model = nn.Sequential(nn.Linear(16, 8))
        >>> report = prune_model(model, "2:4T", Printed(), torch.randn(32, 16))
        0 [1, 8, 16] 32
    """

    name: str
    weight: torch.Tensor
    reading: Reading
    pattern: Pattern
    solver: str | Solver
    gram: torch.Tensor
    cross: torch.Tensor
    power: torch.Tensor
    count: int
    means: tuple[torch.Tensor, torch.Tensor]
    centred: bool
    allowed: torch.Tensor
    halves: tuple[LayerProblem, ...] = ()
    module: nn.Module | None = None
    samples: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        name: str,
        weight: torch.Tensor,
        moments: Moments,
        pattern: Pattern,
        solver: str | Solver,
        *,
        centred: bool,
        keep_zeros: bool,
    ) -> LayerProblem:
        """The problem of a layer with the weight [groups, rows, cols] and these sums."""
        wide = weight.to(moments.gram.dtype)
        count = max(moments.count, 1)
        mean_x, mean_y = moments.inputs / count, moments.outputs / count
        gram, cross, power = moments.gram, moments.cross, moments.power
        if centred:
            gram = torch.baddbmm(gram, mean_x.unsqueeze(2), mean_x.unsqueeze(1), alpha=-count)
            cross = torch.baddbmm(cross, mean_y.unsqueeze(2), mean_x.unsqueeze(1), alpha=-count)
            power = (power - count * mean_y.square()).clamp_(min=0)
        allowed = weight != 0 if keep_zeros else torch.ones_like(weight, dtype=torch.bool)
        return cls(
            name,
            wide,
            moments.reading,
            pattern,
            solver,
            gram,
            cross,
            power,
            moments.count,
            (mean_x, mean_y),
            centred,
            allowed,
        )

    def find_mask(self, scores: torch.Tensor) -> torch.Tensor:
        """The best mask of the pattern for scores [groups, rows, cols]; zeros may stay in it."""
        return self.reading.untile(self.find_tile_mask(self.reading.tiles(scores)))

    def find_tile_mask(self, scores: torch.Tensor) -> torch.Tensor:
        """The best mask for a stack of matrices [count, rows, cols], each with tiles of its own."""
        tiles = scores.contiguous().cpu()
        mask = find_mask(tiles, self.pattern, solver=self.solver, scores=tiles, layout="stacked")
        return mask.tensor.to(scores.device)

    def error(self, weight: torch.Tensor, change: torch.Tensor | None = None) -> torch.Tensor:
        """f by output [groups, rows] for a weight [groups, rows, cols].

        ``change`` [groups * rows] is added to the bias, of a problem that is not centred.
        """
        value = (weight @ self.gram * weight).sum(2) - 2 * (weight * self.cross).sum(2) + self.power
        if change is not None:
            wanted = self.bias_change(weight).view_as(value)
            given = change.to(value.dtype).view_as(value)
            value = value + self.count * given * (given - 2 * wanted)
        return value.clamp_(min=0)

    def error_of(self, weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """f by output [groups, chosen] for weights [groups, chosen, cols] of some outputs."""
        value = (weight @ self.gram * weight).sum(2) - 2 * (weight * self.cross[:, rows]).sum(2)
        return value + self.power[:, rows]

    def relative_error(self, weight: torch.Tensor, change: torch.Tensor | None = None) -> float:
        """f relative to its value for a weight of zeros: 0 is perfect, 1 as bad as no layer."""
        total = float(self.power.sum())
        return float(self.error(weight, change).sum()) / total if total > 0 else 0.0

    def bias_change(self, weight: torch.Tensor) -> torch.Tensor:
        """What to add to the bias [groups * rows] so that the mean output is the dense layer's."""
        mean_x, mean_y = self.means
        return (mean_y - (weight @ mean_x.unsqueeze(2)).squeeze(2)).flatten()

    @cached_property
    def input_power(self) -> torch.Tensor:
        """||x_j||^2 [groups, cols], the diagonal of H."""
        return self.gram.diagonal(dim1=1, dim2=2)

    @cached_property
    def scale(self) -> torch.Tensor:
        """Mean of the diagonal of H by group [groups, 1]: the unit of ridges."""
        return self.gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
