"""The correctness gate: nothing is timed before the very functions that are timed have passed.

The judge is OR-tools' min-cost flow on integer costs, which shares no code with the solvers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch

import transposable
from benchmarks.families import HOSTILE
from benchmarks.inputs import as_matrix, as_tiles
from benchmarks.peers.ortools_flow import optimal_masks
from benchmarks.quality import kept_per_tile, most_and_exact
from transposable import Mask, Pattern, Solution

TOLERANCE: Final = 1e-6
"""Relative difference in objective, per tile, that still counts as the same optimum."""

ORACLE_BITS: Final = 44
"""The largest entry of a tile becomes just under 2^44 in the oracle's integer costs."""

ACROSS: Final = 40
"""Tiles side by side: more than a full vector of 32, and a remainder, so that both paths run."""


class GateError(Exception):
    """A mask that is not what it must be; no speed is printed after this."""


class FindMask(Protocol):
    """The timed function, as the benchmark calls it."""

    def __call__(self, weight: torch.Tensor, pattern: Pattern, *, threads: int) -> Mask: ...


def _find_exact(weight: torch.Tensor, pattern: Pattern, *, threads: int) -> Mask:
    return transposable.find_mask(weight, pattern, solver="exact", threads=threads)


def _solve_exact(scores: torch.Tensor, pattern: Pattern) -> Solution:
    return transposable.solve(scores, pattern, "exact", throw=False, threads=1)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the gate judges and the benchmark times; a test puts a broken one in its place."""

    find: FindMask = _find_exact
    solve: Callable[[torch.Tensor, Pattern], Solution] = _solve_exact


@dataclass(slots=True)
class GateReport:
    """What was checked."""

    tiles_against_oracle: int = 0
    tiles_certified: int = 0
    tiles_counted: int = 0
    families: int = 0
    worst_difference: float = 0.0
    worst_gap: float = 0.0
    crops: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the results file."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"summary": str(self), **fields}

    def __str__(self) -> str:
        return (
            f"gate passed: {self.tiles_against_oracle:,} tiles of {self.families} families equal "
            f"OR-tools' optimum (largest relative difference {self.worst_difference:.1e}), "
            f"{self.tiles_certified:,} tiles certified (largest duality gap {self.worst_gap:.1e}), "
            f"{self.tiles_counted:,} tiles of the timed matrices keep exactly N both ways"
        )


def check_families(
    candidate: Candidate, pattern: Pattern, strips: int, seed: int, report: GateReport
) -> None:
    """Every hostile family, strips of 40 tiles, against the oracle tile by tile; and certified.

    Raises:
        GateError: naming the family, the tile and the two objectives.
    """
    m = pattern.m
    generator = torch.Generator().manual_seed(seed)
    for name, make in HOSTILE.items():
        tiles = make(strips * ACROSS, m, m, generator)
        matrix = as_matrix(tiles, ACROSS)
        optimum = kept_per_tile(matrix, as_matrix(_oracle(tiles.abs(), pattern.n), ACROSS), m)
        where = f"family {name!r}, {pattern}"
        mask = candidate.find(matrix, pattern, threads=1)
        _equal(matrix, mask, optimum, f"find_mask on {where}", report)
        solution = candidate.solve(matrix.abs(), pattern)
        _equal(matrix, solution.mask, optimum, f"solve on {where}", report)
        _certified(matrix.abs(), mask, solution, where, report)
        report.tiles_against_oracle += len(tiles)
    report.families = len(HOSTILE) + 1  # and signed scores
    _check_signed(candidate, pattern, strips, generator, report)


def check_timed(
    candidate: Candidate,
    matrix: torch.Tensor,
    pattern: Pattern,
    threads: int,
    name: str,
    report: GateReport,
    *,
    crop: int = 256,
    verify: bool = False,
) -> torch.Tensor:
    """A matrix that is timed: N both ways everywhere, and a crop of that mask certified.

    ``verify`` asks the package's own report on both axes as well, which takes seconds.

    Returns:
        The mask, bool, for whoever needs the optimum.
    """
    mask = candidate.find(matrix, pattern, threads=threads)
    where = f"{name}, {pattern}, {threads} thread{'s' if threads > 1 else ''}"
    if verify:
        for axis in mask.report().axes:
            if axis.violations or axis.exact < 1:
                raise GateError(f"gate: {where}: verify says of axis {axis.axis!r}: {axis}")
    _, exact = most_and_exact(mask.tensor, pattern.n, pattern.m)
    if not exact.all():
        raise GateError(
            f"gate: {where}: {int((~exact).sum())} of {len(exact)} tiles do not keep exactly "
            f"{pattern.n} in every row and column"
        )
    # The last corner: the first tiles are the ones that a solver with a broken tail gets right.
    crop -= crop % pattern.m
    corner = matrix[-crop:, -crop:]
    solution = candidate.solve(corner.abs(), pattern)
    held = Mask(mask.tensor[-crop:, -crop:], pattern)
    _certified(corner.abs(), held, solution, where, report)
    report.tiles_counted += len(exact)
    report.crops.append(where)
    return mask.tensor


def check_same_objective(
    matrix: torch.Tensor, kept: torch.Tensor, pattern: Pattern, best: torch.Tensor, who: str
) -> None:
    """Another solver's mask of the timed matrix: exactly N, and as much kept in every tile.

    Raises:
        GateError: if not.
    """
    _, exact = most_and_exact(kept, pattern.n, pattern.m)
    if not exact.all():
        raise GateError(f"{who} does not keep exactly {pattern.n} of {pattern.m} everywhere")
    sums = kept_per_tile(matrix, kept, pattern.m)
    difference = ((sums - best).abs() / best.clamp(min=1e-300)).max().item()
    if difference > TOLERANCE:
        raise GateError(f"{who} differs from the optimum of a tile by {difference:.1e}")


def _check_signed(
    candidate: Candidate,
    pattern: Pattern,
    strips: int,
    generator: torch.Generator,
    report: GateReport,
) -> None:
    """Scores may be negative: exactly N is kept all the same."""
    m = pattern.m
    tiles = torch.randn(strips * ACROSS, m, m, generator=generator)
    scores = as_matrix(tiles, ACROSS)
    best = (tiles.double() * _oracle(tiles, pattern.n)).sum((1, 2))
    where = f"signed scores, {pattern}"
    solution = candidate.solve(scores, pattern)
    kept = as_tiles(solution.mask.tensor, m)
    if not ((kept.sum(1) == pattern.n).all() and (kept.sum(2) == pattern.n).all()):
        raise GateError(f"gate: solve on {where}: not exactly N in every row and column")
    got = (tiles.double() * kept).sum((1, 2))
    scale = (tiles.double().abs() * kept).sum((1, 2))
    _difference((got - best).abs() / scale, got, best, f"solve on {where}", report)
    _certified(scores, solution.mask, solution, where, report)
    report.tiles_against_oracle += len(tiles)


def _oracle(scores: torch.Tensor, n: int) -> torch.Tensor:
    return optimal_masks(scores, n, ORACLE_BITS)


def _equal(
    matrix: torch.Tensor, mask: Mask, optimum: torch.Tensor, where: str, report: GateReport
) -> None:
    pattern = mask.pattern
    _, exact = most_and_exact(mask.tensor, pattern.n, pattern.m)
    if not exact.all():
        tile = int((~exact).nonzero()[0, 0])
        raise GateError(
            f"gate: {where}: tile {tile} does not keep exactly {pattern.n} in every row and column"
        )
    sums = kept_per_tile(matrix, mask.tensor, pattern.m)
    relative = (sums - optimum).abs() / optimum.clamp(min=1e-300)
    _difference(relative, sums, optimum, where, report)


def _difference(
    relative: torch.Tensor,
    got: torch.Tensor,
    optimum: torch.Tensor,
    where: str,
    report: GateReport,
) -> None:
    tile = int(relative.argmax())
    worst = relative[tile].item()
    if not worst <= TOLERANCE:  # so that NaN fails too
        raise GateError(
            f"gate: {where}: tile {tile} keeps {got[tile].item():.9g}, OR-tools' optimum is "
            f"{optimum[tile].item():.9g}: they differ by {worst:.1e}, allowed is {TOLERANCE:.0e}"
        )
    report.worst_difference = max(report.worst_difference, worst)


def _certified(
    scores: torch.Tensor, mask: Mask, solution: Solution, where: str, report: GateReport
) -> None:
    if solution.potentials is None:
        raise GateError(f"gate: solve on {where}: the solution carries no potentials")
    certificate = transposable.certify(scores, mask, solution.potentials, tolerance=TOLERANCE)
    if not certificate.optimal:
        raise GateError(
            f"gate: certify on {where}: feasible {certificate.feasible}, largest duality gap of a "
            f"tile {certificate.worst_gap:.1e}, allowed is {TOLERANCE:.0e}"
        )
    report.tiles_certified += certificate.tiles
    report.worst_gap = max(report.worst_gap, certificate.worst_gap)
