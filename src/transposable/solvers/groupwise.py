"""Optimal masks of patterns that decouple: plain N:M, sequential N:M, unstructured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable import _core
from transposable.kernels import row_wise as row_wise_kernel
from transposable.pattern import Structure
from transposable.problem import NanScoreError, Problem
from transposable.solvers.base import Outcome, Solver


@dataclass(frozen=True)
class RowWise(Solver):
    """Plain N:M: the N largest scores of every M consecutive along the rows (native).

    Optimal for its pattern, since the groups are independent. Ties go to the lower index. A group
    cut short by the edge keeps at most N, and drops negative scores.

    Complexity: O(weights * log M).
    """

    name: ClassVar[str] = "row_wise"
    structures: ClassVar[tuple[Structure, ...]] = ("row",)
    summary: ClassVar[str] = "plain N:M, the largest N of each group"
    promises_optimal: ClassVar[bool] = True
    checks_nan: ClassVar[bool] = True

    def on_gpu(self, problem: Problem, *, certify: bool) -> Outcome:
        kept, pattern = problem.mask(), problem.pattern
        nans = row_wise_kernel.fill(problem.matrices, kept, pattern.n, pattern.m, problem.magnitude)
        stats = {"ran_on": str(kept.device)}
        return Outcome(kept, optimal=True, stats=stats, nans=nans)

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        kept = torch.empty(problem.matrices.shape, dtype=torch.bool)
        pattern = problem.pattern
        nan_at = _core.row_wise(
            problem.matrices, kept, pattern.n, pattern.m, problem.magnitude, problem.threads
        )
        if nan_at is not None:
            raise NanScoreError(nan_at)
        return Outcome(kept, optimal=True)


@dataclass(frozen=True)
class Sequential(Solver):
    """Sequential N:M (the paper's "S"): the best window of N consecutive among M.

    Optimal for its pattern: all M - N + 1 windows are compared. The first window wins ties. A group
    cut short by the edge is padded with zeros.

    Complexity: O(weights * (M - N + 1)).
    """

    name: ClassVar[str] = "sequential"
    structures: ClassVar[tuple[Structure, ...]] = ("sequential",)
    summary: ClassVar[str] = "the best N consecutive of each group of M"
    promises_optimal: ClassVar[bool] = True

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        n, m = problem.pattern.n, problem.pattern.m
        batch, rows, cols = problem.matrices.shape
        kept = torch.empty(batch, rows, -(-cols // m) * m, dtype=torch.bool)
        offsets = torch.arange(m)
        for index in range(batch):
            scores = problem.matrices[index].double()
            scores = scores.abs() if problem.magnitude else scores
            padded = torch.nn.functional.pad(scores, (0, kept.shape[-1] - cols))
            windows = padded.reshape(rows, kept.shape[-1] // m, m).unfold(-1, n, 1).sum(-1)
            start = windows.argmax(-1, keepdim=True)
            kept[index] = ((offsets >= start) & (offsets < start + n)).reshape(kept[index].shape)
        return Outcome(kept[:, :, :cols].contiguous(), optimal=True)


@dataclass(frozen=True)
class Unstructured(Solver):
    """The largest scores of the whole tensor, P percent of it.

    Keeps ceil(P/100 * weights). Ties go to the lower index.

    Complexity: O(weights) by selection.
    """

    name: ClassVar[str] = "unstructured"
    structures: ClassVar[tuple[Structure, ...]] = ("unstructured",)
    summary: ClassVar[str] = "the largest P percent of the whole tensor"
    promises_optimal: ClassVar[bool] = True

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        scores = problem.scores().reshape(-1)
        count = -(-scores.numel() * problem.pattern.n // problem.pattern.m)
        if not count:
            return Outcome(torch.zeros(problem.matrices.shape, dtype=torch.bool), optimal=True)
        threshold = scores.kthvalue(scores.numel() - count + 1).values
        kept = scores > threshold
        ties = (scores == threshold).nonzero().flatten()
        kept[ties[: count - int(kept.count_nonzero())]] = True
        return Outcome(kept.reshape(problem.matrices.shape), optimal=True)
