"""An independent proof of optimality: feasibility, primal = dual, complementary slackness.

Nothing here calls a solver, native code included: plain torch in float64, on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch

from transposable.arrays import ANYWHERE, to_scores
from transposable.errors import MaskError, ScoresError
from transposable.layout import Layout, LayoutName, blocks
from transposable.mask import Mask
from transposable.problem import infinite_stand_in

SIGNED_FLOOR: Final = 2.0**-20
"""A tile's gap is relative to at least this share of its largest score."""

STRIP: Final = 1 << 16
"""Weights looked at in one go."""


@dataclass(frozen=True, slots=True)
class Potentials:
    """Dual variables of every tile: u for its rows, v for its columns.

    Shape [batch, ceil(rows/m), ceil(cols/m), m], float64, in the units of the scores; entries of
    padded rows and columns are 0.
    """

    rows: torch.Tensor
    cols: torch.Tensor


@dataclass(frozen=True, slots=True)
class Certificate:
    """What :func:`certify` found; true when it proves the mask optimal to ``tolerance``.

    Attributes:
        feasible: full tiles keep exactly N per row and column, ragged ones at most N.
        objective: sum of the kept scores.
        bound: dual value, which no mask exceeds.
        gap: (bound - objective) / scale over all tiles, where scale is the sum of the finite kept
            magnitudes, but at least 2^-20 of the largest finite magnitude of its tile, and all of
            it in a tile that has infinite scores.
        worst_gap: the largest gap of a single tile.
        worst_slackness: largest violation of complementary slackness, relative to the largest
            score of its tile: a kept score below u + v, or a pruned one above it.
        tiles: number of tiles checked.
        tolerance: the relative gap up to which a tile counts as proved.
    """

    feasible: bool
    objective: float
    bound: float
    gap: float
    worst_gap: float
    worst_slackness: float
    tiles: int
    tolerance: float

    @property
    def optimal(self) -> bool:
        """Whether every tile is proved optimal."""
        return self.feasible and self.worst_gap <= self.tolerance

    def __bool__(self) -> bool:
        return self.optimal


def certify(
    scores: Any,
    mask: Mask,
    potentials: Potentials,
    *,
    layout: LayoutName | Layout | None = None,
    tolerance: float = 1e-6,
) -> Certificate:
    """Check from first principles that a transposable mask is optimal for these scores.

    For potentials u, v of a tile, every mask with N kept per row and column satisfies

        sum S_ij a_ij  <=  N sum_i u_i + N sum_j v_j + sum_ij max(0, a_ij - u_i - v_j)

    with equality exactly when a_ij - u_i - v_j >= 0 on kept and <= 0 on pruned entries (linear
    programming duality of the transport problem; the paper's min-cost flow, figure 4). In a tile
    that is cropped by a ragged edge at most N are kept, and u, v must be non-negative: negative
    ones are replaced by 0, which keeps the bound valid. An infinite score counts as 2^14 times the
    largest finite magnitude of its tile, which outweighs every sum of finite scores.

    Args:
        scores: the scores that were maximised (|weight| for a mask by magnitude), in the shape of
            the mask; float32/64/16 or bfloat16.
        mask: the mask to check, with a transposable pattern.
        potentials: from :attr:`Solution.potentials`, or anyone else.
        layout: the layout of the scores if it is not the mask's.
        tolerance: relative duality gap per tile that still counts as optimal.

    Returns:
        A :class:`Certificate`.

    Raises:
        ScoresError: if the scores contain NaN or have the wrong shape or dtype.
        MaskError: if the mask's pattern is not transposable or the potentials do not fit.

    Complexity: O(weights) time; float64 temporaries of STRIP weights, or of one row of tiles, at a
        time.

    Example:
        >>> import transposable
        >>> scores = torch.rand(64, 64)
        >>> solution = transposable.solve(scores, "4:8T")
        >>> certify(scores, solution.mask, solution.potentials).optimal
        True
    """
    pattern = mask.pattern
    if not pattern.transposable:
        raise MaskError(
            f"certify: received a mask with pattern {pattern}; the certificate is one of "
            "transposable masks; use verify() for other patterns"
        )
    tensor = to_scores(scores, "certify", ANYWHERE)
    if tensor.shape != mask.shape:
        raise ScoresError(
            f"certify: received scores of shape {tuple(tensor.shape)} and a mask of shape "
            f"{tuple(mask.shape)}; they must be equal; pass the scores the mask was found for"
        )
    read = mask.layout if layout is None else Layout.of(layout, mask.layout.groups)
    values, kept = read.matrices(tensor), read.matrices(mask.tensor.to(tensor.device))
    m = pattern.m
    batch, rows, cols = values.shape
    expected = (batch, -(-rows // m), -(-cols // m), m)
    for name, potential in (("rows", potentials.rows), ("cols", potentials.cols)):
        if tuple(potential.shape) != expected:
            raise MaskError(
                f"certify: potentials.{name} has shape {tuple(potential.shape)}; {expected} is "
                f"needed for {pattern} on {tuple(mask.shape)}; pass the potentials of this solution"
            )
    total = _Totals()
    # Whole matrices where they are small, else rows of tiles: few calls, bounded temporaries.
    many = max(STRIP // max(rows * cols, 1), 1)
    high = max(STRIP // max(m * cols, 1), 1)
    for b in range(0, batch, many):
        for top in range(0, expected[1], high):
            these, tiles = slice(b, b + many), slice(top, top + high)
            total.add(
                values[these, top * m : (top + high) * m].double(),
                kept[these, top * m : (top + high) * m],
                potentials.rows[these, tiles].to(tensor.device, torch.float64),
                potentials.cols[these, tiles].to(tensor.device, torch.float64),
                pattern.n,
                m,
            )
    return total.certificate(tolerance)


class _Totals:
    """Sums and extremes over the strips of tiles."""

    def __init__(self) -> None:
        self.feasible = True
        self.objective = self.bound = self.gap = self.scale = 0.0
        self.worst_gap = self.worst_slackness = 0.0
        self.tiles = 0

    def add(
        self,
        strip: torch.Tensor,
        kept_strip: torch.Tensor,
        u: torch.Tensor,
        v: torch.Tensor,
        n: int,
        m: int,
    ) -> None:
        """Rows of tiles: strip, kept_strip [batch, rows, cols]; u, v [batch, down, across, m]."""
        if strip.isnan().any():
            raise ScoresError("certify: the scores contain NaN; scores must be numbers; remove it")
        kept, real, a = (
            blocks(part, m).flatten(0, 2)
            for part in (kept_strip, torch.ones_like(kept_strip), strip)
        )
        if not len(kept):
            return
        u, v = u.flatten(0, 2), v.flatten(0, 2)
        a, exponent, infinite = _normalised(a)
        u, v = _ldexp(u, -exponent), _ldexp(v, -exponent)
        full = real.all(2).all(1)
        by_row, by_col = kept.sum(2), kept.sum(1)
        at_most = (by_row <= n).all(1) & (by_col <= n).all(1)
        exactly = (by_row == n).all(1) & (by_col == n).all(1)
        self.feasible &= bool(torch.where(full, exactly, at_most).all())

        u = torch.where(full[:, None], u, u.clamp(min=0))
        v = torch.where(full[:, None], v, v.clamp(min=0))
        reduced = torch.where(real, a - u[:, :, None] - v[:, None, :], 0.0)
        wrong = torch.where(kept, -reduced, reduced).clamp(min=0)
        # dual - primal, without the cancellation of that difference: what complementary slackness
        # is short of, and potentials of lines that keep fewer than n (none in a full tile).
        gap = wrong.sum((1, 2)) + (u * (n - by_row)).sum(1) + (v * (n - by_col)).sum(1)
        primal = torch.where(kept, a, 0.0).sum((1, 2))
        scale = torch.where(kept & ~infinite, a.abs(), 0.0).sum((1, 2))
        # In units of the largest finite score: infinite ones must not hide a gap among the finite;
        # and signed scores may sum to next to nothing, but a gap below 1e-12 is rounding. (The
        # optimum of non-negative scores is at least n/m of their sum: no floor is needed there.)
        scale = scale.clamp(min=SIGNED_FLOOR)
        scale = torch.where(infinite.any(2).any(1), scale.clamp(min=1.0), scale)
        # 0 / 0 is no gap; NaN (potentials that are no numbers) proves nothing.
        relative = torch.where(gap == 0, 0.0, gap / scale).nan_to_num(nan=math.inf, posinf=math.inf)
        slackness = wrong.amax((1, 2)) / a.abs().amax((1, 2)).clamp(min=1.0)
        slackness = slackness.nan_to_num(nan=math.inf, posinf=math.inf)

        self.objective += _ldexp(primal, exponent).sum().item()
        self.bound += _ldexp(primal + gap, exponent).sum().item()
        self.gap += _ldexp(gap, exponent).sum().item()
        self.scale += _ldexp(scale, exponent).sum().item()
        self.worst_gap = max(self.worst_gap, relative.max().item())
        self.worst_slackness = max(self.worst_slackness, slackness.max().item())
        self.tiles += len(a)

    def certificate(self, tolerance: float) -> Certificate:
        gap = self.gap / self.scale if self.scale else 0.0
        if not math.isfinite(gap) or not self.scale:  # sums beyond the range of doubles, or all 0
            gap = self.worst_gap
        return Certificate(
            self.feasible,
            self.objective,
            self.bound,
            max(gap, 0.0),
            self.worst_gap,
            self.worst_slackness,
            self.tiles,
            tolerance,
        )


def _normalised(tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tiles over 2^exponent, so that the largest finite magnitude is in [1, 2), or is 0.

    Sums then neither overflow nor vanish. Infinite scores become the finite value that stands for
    them. Also returns the exponents and where scores were infinite.
    """
    infinite = tiles.isinf()
    largest = torch.where(infinite, 0.0, tiles.abs()).amax((1, 2))
    exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0)
    scaled = _ldexp(tiles, -exponent)
    if infinite.any():
        top = _ldexp(largest, -exponent).tolist()
        stand_in = largest.new_tensor([infinite_stand_in(x) for x in top])
        scaled = torch.where(infinite, tiles.sign() * stand_in[:, None, None], scaled)
    return scaled, exponent, infinite


def _ldexp(values: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """values * 2^exponent, tile by tile: exact, and without 2^exponent leaving the doubles."""
    half = exponent // 2
    for part in (half, exponent - half):
        values = values * _power_of_two(part).reshape((-1,) + (1,) * (values.ndim - 1))
    return values


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent from its bits, |exponent| < 1023."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)
