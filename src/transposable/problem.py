"""The problem every solver is given: scores as matrices, and the pattern to satisfy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from transposable.errors import ScoresError
from transposable.layout import blocks
from transposable.pattern import Pattern


@dataclass(frozen=True, slots=True)
class Problem:
    """maximise sum S_ij a_ij over masks S that satisfy the pattern.

    Attributes:
        matrices: [batch, rows, cols] of float32/64/16 or bfloat16, any strides, on the CPU or
            a GPU.
        pattern: full tiles keep exactly N per line; a tile cropped by a ragged edge keeps at most
            N per line, as if it were padded with scores of zero that are free to be kept or not.
        magnitude: a_ij is |matrices_ij| when true, matrices_ij itself when false.
        threads: threads that native code may use.
        out: bool [batch, rows, cols], any strides: where a solver on a GPU puts its mask.
    """

    matrices: torch.Tensor
    pattern: Pattern
    magnitude: bool
    threads: int
    out: torch.Tensor | None = None

    def mask(self) -> torch.Tensor:
        """Where the mask goes: ``out``, or a new tensor on the device of the matrices."""
        if self.out is not None:
            return self.out
        return torch.empty(self.matrices.shape, dtype=torch.bool, device=self.matrices.device)

    def scores(self) -> torch.Tensor:
        """The scores that are maximised, [batch, rows, cols], in the matrices' dtype."""
        return self.matrices.abs() if self.magnitude else self.matrices

    def tiles(self) -> torch.Tensor:
        """The scores as float64 tiles [batch, down, across, m, m], zero-padded."""
        return blocks(self.scores().double(), self.pattern.m)

    def check_nan(self) -> None:
        """Raise NanScoreError at the first NaN."""
        for index, matrix in enumerate(self.matrices):
            bad = torch.isnan(matrix)
            if bad.any():
                row, col = bad.nonzero()[0].tolist()
                raise NanScoreError((index, row, col))


class NanScoreError(ScoresError):
    """A score is NaN; ``place`` is (batch, row, col) of the problem's matrices."""

    def __init__(self, place: tuple[int, int, int]) -> None:
        super().__init__(
            f"the score at matrix {place[0]}, row {place[1]}, column {place[2]} is NaN"
        )
        self.place = place


def infinite_stand_in(largest_finite: float) -> float:
    """The finite value that stands for an infinite score in a tile.

    It outweighs every sum of finite scores of a tile: 2^14 > 2 * 64 * 63, times the largest finite
    magnitude of the tile (1 if that is 0).
    """
    return math.ldexp(largest_finite or 1.0, 14)
