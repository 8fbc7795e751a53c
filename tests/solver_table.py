"""One row for each solver: what it promises, which the tests of tests/solvers hold it to.

A new solver is one new row here.
"""

from __future__ import annotations

from dataclasses import dataclass

from transposable import (
    Auto,
    Entropic,
    Exact,
    Exhaustive,
    Greedy,
    Pattern,
    Reference,
    RowWise,
    Sequential,
    Solver,
    TwoApprox,
    Unstructured,
)

TRANSPOSABLE = ("1:2T", "1:3T", "2:3T", "1:4T", "2:4T", "3:4T", "2:5T")
LARGER = ("4:8T", "3:7T", "8:16T")


@dataclass(frozen=True)
class Row:
    """What one solver promises.

    Attributes:
        solver: the solver with its options.
        patterns: patterns to test it with.
        exactly: full groups keep exactly N; otherwise at most N.
        optimal: no mask keeps more.
        floor: least share of the optimum that it keeps on Gaussian magnitudes; from measurements,
            with room for small matrices.
        moves: the mask of permuted or transposed scores without ties is the permuted or transposed
            mask; otherwise only an optimum's objective is bound to stay.
        alone: the mask of a tile does not depend on its neighbours; otherwise only an optimum's
            objective is bound not to, since ties may be broken differently.
        larger: also test it with LARGER.
    """

    solver: Solver
    patterns: tuple[str, ...] = TRANSPOSABLE
    exactly: bool = True
    optimal: bool = False
    floor: float = 1.0
    moves: bool = False
    alone: bool = True
    larger: bool = True

    @property
    def id(self) -> str:
        """Name of the test cases of this row."""
        return str(self.solver)

    @property
    def parsed(self) -> tuple[Pattern, ...]:
        """All patterns of this row."""
        larger = LARGER if self.larger and self.patterns is TRANSPOSABLE else ()
        return tuple(Pattern.parse(p) for p in self.patterns + larger)


TABLE = (
    Row(Auto(), optimal=True, alone=False),
    Row(Exact(), optimal=True, alone=False),
    Row(Exhaustive(), optimal=True, larger=False),
    Row(Reference(), optimal=True, larger=False),
    Row(TwoApprox(), exactly=False, floor=0.5, moves=True),
    Row(TwoApprox(repair=True), floor=0.85),
    Row(Greedy(repair=False, sweeps=0), exactly=False, floor=0.85, moves=True),
    Row(Greedy(sweeps=0), floor=0.85),
    Row(Greedy(), floor=0.97),
    Row(Entropic(), floor=0.995),
    Row(Entropic(iterations=40, tau=8.0, sweeps=0), floor=0.9),
    Row(RowWise(), ("1:2", "2:4", "3:7", "4:8", "8:16", "5:33"), optimal=True),
    Row(Sequential(), ("2:4S", "3:7S", "4:8S"), optimal=True),
    Row(Unstructured(), ("50%", "12.5%"), optimal=True),
)

TRANSPOSABLE_ROWS = tuple(row for row in TABLE if row.patterns is TRANSPOSABLE)
