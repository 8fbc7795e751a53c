"""SparseGPT: prune column by column, and let the columns to come make up for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable.prune.inverse import inverse_factor, unconstrained
from transposable.prune.methods.base import Method, Pruned
from transposable.prune.methods.settings import check_count, check_not_negative
from transposable.prune.problem import LayerProblem
from transposable.prune.scores import Scores, make_scores

Span = tuple[int, int]
"""Columns from the first to before the second."""


@dataclass(frozen=True)
class SparseGPT(Method):
    """Optimal brain surgery in the order of the columns, with masks of the pattern.

    With (H + d I)^-1 = U^T U, column j of a weight that has been changed so far loses what the mask
    prunes, and the columns after it make up for that in the best way:

        e = (w_j - S_j w_j) / U_jj,   w_k -= e U_jk  for k >= j

    The mask is chosen for M consecutive columns of one kernel position at a time, when they are
    reached: the best one of the pattern (all rows, solved exactly) for the scores

        a_ij = w_ij^2 / U_jj^2,

    the error that pruning w_ij alone causes after that repair. For an unstructured pattern,
    ``block`` columns at a time keep their share.

    Attributes:
        damping: d, in units of the mean diagonal of H.
        scores: "obs", as above; or other scores (see :mod:`transposable.prune.scores`), from which
            the whole mask is found before any weight has changed.
        block: columns whose changes are gathered before they are applied to all that follow.

    Where the wanted outputs are not those of W on the same inputs, the weights that are pruned are
    the unconstrained best ones, ``argmin f(V) + d ||V - W||^2``, instead of W. An input that was
    always zero scores zero, as published; a weight of it that the mask keeps stays as it was.

    Raises:
        MethodError: if the damping is negative or not finite, the block no integer from 1 on, or
            there are no such scores.

    Complexity: 2 rows cols^2 + 2/3 cols^3 operations; memory two more H.

    Source: Frantar and Alistarh, "SparseGPT: Massive Language Models Can be Accurately Pruned in
    One-Shot", ICML 2023, algorithm 1.

    Example:
        >>> SparseGPT(block=64).name
        'sparsegpt'
    """

    damping: float = 0.01
    scores: str | Scores = "obs"
    block: int = 128

    name: ClassVar[str] = "sparsegpt"

    def __post_init__(self) -> None:
        check_not_negative("SparseGPT", damping=self.damping)
        check_count("SparseGPT", 1, block=self.block)
        make_scores(self.scores)

    def prune(self, problem: LayerProblem) -> Pruned:
        factor, damping = inverse_factor(problem, self.damping)
        weight = unconstrained(problem, factor)
        if self.scores == "obs":
            mask = torch.zeros_like(problem.allowed)
            chooser = _Chooser(problem, factor)
        else:
            mask = problem.find_mask(make_scores(self.scores)(problem))
            chooser = None
        for spans in gathered(mask_spans(problem, self.block), self.block):
            first, last = spans[0][0], spans[-1][1]
            part = weight[:, :, first:last].clone()
            errors = torch.zeros_like(part)
            for start, stop in spans:
                if chooser is not None:
                    chosen = chooser.choose(part[:, :, start - first : stop - first], start, stop)
                    mask[:, :, start:stop] = chosen
                for column in range(start, stop):
                    at = column - first
                    kept = mask[:, :, column] & problem.allowed[:, :, column]
                    error = part[:, :, at].masked_fill(kept, 0)
                    error /= factor[:, column, column].unsqueeze(1)
                    row = factor[:, column, column:last].unsqueeze(1)
                    part[:, :, at:].addcmul_(error.unsqueeze(2), row, value=-1)
                    errors[:, :, at] = error
            weight[:, :, first:last] = part
            weight[:, :, last:] -= errors @ factor[:, first:last, last:]
        return Pruned(weight * (mask & problem.allowed), mask, {"damping": damping})


class _Chooser:
    """Chooses the mask of some columns from their weights of now."""

    def __init__(self, problem: LayerProblem, factor: torch.Tensor) -> None:
        self._problem = problem
        diagonal = factor.diagonal(dim1=1, dim2=2)
        live = problem.input_power > 0
        self._rate = torch.where(live, diagonal.square().reciprocal(), 0).unsqueeze(1)

    def choose(self, weight: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        problem = self._problem
        scores = weight.square() * self._rate[:, :, start:stop] * problem.allowed[:, :, start:stop]
        pattern = problem.pattern
        if pattern.structure == "unstructured":
            groups, rows, _ = scores.shape

            def quota(columns: int) -> int:
                return -(-groups * rows * columns * pattern.n // pattern.m)

            return largest(scores, quota(stop) - quota(start))
        return problem.find_tile_mask(scores)


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of the ``count`` largest scores; ties go to the lower index."""
    order = scores.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


def mask_spans(problem: LayerProblem, block: int) -> Iterator[Span]:
    """Columns whose mask is chosen together: no tile crosses from one kernel position to the next.

    A span at the end of a kernel position may be shorter, as the tiles there are.
    """
    reading, pattern = problem.reading, problem.pattern
    if pattern.structure == "unstructured":
        for start in range(0, reading.cols, block):
            yield start, min(start + block, reading.cols)
        return
    for first in range(0, reading.cols, reading.channels):
        last = first + reading.channels
        for start in range(first, last, pattern.m):
            yield start, min(start + pattern.m, last)


def gathered(spans: Iterator[Span], block: int) -> Iterator[list[Span]]:
    """Consecutive spans of at most ``block`` columns in all, or one that is longer by itself."""
    held: list[Span] = []
    for span in spans:
        if held and span[1] - held[0][0] > block:
            yield held
            held = []
        held.append(span)
    if held:
        yield held
