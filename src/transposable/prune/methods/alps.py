"""ALPS: the mask itself is searched for, by the alternating direction method of multipliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable.errors import MethodError
from transposable.prune.inverse import inverse_factor, unconstrained
from transposable.prune.methods.adaprune import fit
from transposable.prune.methods.base import Method, Pruned
from transposable.prune.methods.settings import (
    Ridge,
    check_count,
    check_not_negative,
    check_ridge,
)
from transposable.prune.problem import LayerProblem

LARGEST = 1e6
"""Of the penalty, as published."""


@dataclass(frozen=True)
class ALPS(Method):
    """Weights without a mask and weights with one are drawn together, then those on it refitted.

    In units in which every input has power 1 (A = scaled H + d I, Y = scaled G + d W):

        B <- (Y - V + p D) (A + p I)^-1
        D <- S * (B + V / p),  S the best mask of the pattern for the scores (B + V / p)^2, exactly
        V <- V + p (B - D)

    Every third time the penalty p grows: by 1.3 where more than 10 % of the mask changed, by 1.2
    above 0.5 %, by 1.1 where less did. The search ends when the mask rests (or changes by less than
    0.03 % after 30 iterations); the mask that is best for B^2 then is taken, and the weights on it
    are those of exact least squares, in place of the ten iterations of conjugate gradients of the
    publication.

    Attributes:
        damping: d, in units of the mean diagonal of H.
        penalty: p at the start; divided by 5 as long as the mask does not move at all.
        iterations: the most.
        every: iterations between two looks at the mask.
        settled: iterations after which a mask that hardly changes is final.
        ridge: of the least squares, as in AdaPrune.

    Where the wanted outputs are not those of W on the same inputs, the search starts from the
    unconstrained best weights, ``argmin f(V) + d ||V - W||^2``, instead of W.

    Raises:
        MethodError: if a setting is negative or not finite, or there are no iterations.

    Complexity: an eigendecomposition of H, about 9 cols^3; 2 rows cols^2 operations and one mask
    an iteration; 2 cols^3 where p changes.

    Source: Meng, Behdin, Wang, Mazumder, "ALPS: Improved Optimization for Highly Sparse One-Shot
    Pruning for Large Language Models", NeurIPS 2024, algorithm 1 and the settings of its code.

    Example:
        >>> ALPS().penalty, ALPS().iterations
        (0.1, 300)
    """

    damping: float = 0.01
    penalty: float = 0.1
    iterations: int = 300
    every: int = 3
    settled: int = 30
    ridge: Ridge = "auto"

    name: ClassVar[str] = "alps"

    def __post_init__(self) -> None:
        check_not_negative("ALPS", damping=self.damping, penalty=self.penalty)
        check_ridge("ALPS", self.ridge)
        check_count("ALPS", 1, iterations=self.iterations, every=self.every)
        check_count("ALPS", 0, settled=self.settled)
        if self.penalty == 0:
            raise MethodError("ALPS: received penalty=0; it must be above 0, 0.1 as published")

    @property
    def needs_halves(self) -> bool:
        return self.ridge == "auto"

    def prune(self, problem: LayerProblem) -> Pruned:
        search = _Search(problem, self)
        iterations = search.run()
        mask = search.best_mask(search.free)
        fitted = fit(problem, mask, self.ridge)
        info = {"penalty": search.penalty, "rounds": iterations, **fitted.info}
        return Pruned(fitted.weight, mask, info)


class _Search:
    """The state of the method: B (free), D (sparse), V (multiplier), in scaled units."""

    def __init__(self, problem: LayerProblem, settings: ALPS) -> None:
        self._problem, self._settings = problem, settings
        factor, damping = inverse_factor(problem, settings.damping)
        first = unconstrained(problem, factor)
        del factor
        shift = damping * problem.scale  # [groups, 1]
        power = problem.input_power + shift
        units = torch.where(power > 0, power, 1).sqrt().unsqueeze(1)
        self._wanted = (problem.cross + shift.unsqueeze(2) * problem.weight) / units
        gram = problem.gram / units / units.mT
        gram.diagonal(dim1=1, dim2=2).fill_(1)
        self._values, self._vectors = torch.linalg.eigh(gram)
        self._values.clamp_(min=0)
        del gram
        self._begin = first * units
        self._inverse: torch.Tensor | None = None
        self.penalty = settings.penalty
        self._restart()

    def best_mask(self, weight: torch.Tensor) -> torch.Tensor:
        """The best mask for the squares of the weights that may be other than zero."""
        return self._problem.find_mask(weight.square() * self._problem.allowed)

    def run(self) -> int:
        """Iterate until the mask rests; how often."""
        settings = self._settings
        held = int(self._support.count_nonzero())
        before, moved = self._support, False
        for iteration in range(1, settings.iterations + 1):
            self._iterate()
            if iteration % settings.every:
                continue
            changed = int((self._support ^ before).count_nonzero())
            before = self._support
            if changed == 0 and moved:
                return iteration
            growth = _growth(changed, held)
            if growth > 1.1 or (changed and moved):
                self._set_penalty(growth * self.penalty)
                moved = True
            else:
                # The penalty was so large from the start that it holds the mask where it began.
                self._set_penalty(self.penalty / 5)
                if changed:
                    self._restart()
            if iteration > settings.settled and changed < 3e-4 * held:
                return iteration
        return settings.iterations

    def _restart(self) -> None:
        self.free = self._begin
        self._support = self.best_mask(self.free) & self._problem.allowed
        self._sparse = self.free * self._support
        self._multiplier = torch.zeros_like(self.free)

    def _set_penalty(self, penalty: float) -> None:
        self.penalty = min(penalty, LARGEST)
        self._inverse = None

    def _iterate(self) -> None:
        if self._inverse is None:
            shrunk = self._vectors / (self._values + self.penalty).unsqueeze(1)
            self._inverse = shrunk @ self._vectors.mT
        right = self._wanted - self._multiplier + self.penalty * self._sparse
        self.free = right @ self._inverse
        joint = self.free + self._multiplier / self.penalty
        self._support = self.best_mask(joint) & self._problem.allowed
        self._sparse = joint * self._support
        self._multiplier += self.penalty * (self.free - self._sparse)


def _growth(changed: int, held: int) -> float:
    """By how much the penalty grows, as published."""
    if changed > 0.1 * held:
        return 1.3
    return 1.2 if changed > 0.005 * held else 1.1
