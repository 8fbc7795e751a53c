"""find_mask, fill_mask and solve: the ways in."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Final

import torch

from transposable import _core
from transposable.arrays import ANYWHERE, to_scores
from transposable.errors import DeviceError, MaskError, ScoresError, SolverError
from transposable.layout import Layout, LayoutName
from transposable.mask import Mask
from transposable.pattern import Pattern
from transposable.problem import NanScoreError, Problem
from transposable.solution import Solution, Status
from transposable.solvers import Auto, Outcome, Solver, make_solver

MAX_THREADS: Final = 1024
"""More is taken for a mistake: every thread is really started."""


def find_mask(
    weight: Any,
    pattern: str | Pattern,
    *,
    solver: str | Solver | type[Solver] = "auto",
    scores: Any | None = None,
    layout: LayoutName | Layout = "linear",
    groups: int = 1,
    threads: int | None = None,
) -> Mask:
    """The mask of the pattern that keeps the most of a weight.

        max sum_ij S_ij a_ij,   a = |weight| or the given scores

    Args:
        weight: torch tensor, numpy array or anything with DLPack, on the CPU or a GPU, where the
            mask is found and stays (docs/gpu.md); float32/64/16 or bfloat16; any strides.
        pattern: "2:4T", "4:8T" (transposable), "2:4" (plain), "4:8S" (sequential), "50%".
        solver: a name ("auto", "exact", "two_approx", "greedy", ...), a solver object or class.
        scores: what to maximise instead of |weight|, in the shape of weight; may be negative,
            +-inf is allowed, NaN is an error.
        layout: how the tensor is read: "linear" [out, in], "conv" [Cout, Cin/groups, *kernel] or
            "stacked" [*batch, out, in].
        groups: groups of a convolution.
        threads: threads to use; default torch.get_num_threads().

    Returns:
        A :class:`Mask`; its ``array`` is of the caller's kind. Where a ragged edge crops a tile,
        the mask keeps at most N per line, as if padded with free zeros.

    Raises:
        PatternError, LayoutError, ScoresError, SolverError, DeviceError: see their messages.

    Complexity: with the exact solver close to one pass over memory; see docs/solvers.md.

    Example:
        >>> mask = find_mask(torch.randn(64, 128), "4:8T")
        >>> mask.density, mask.violations()
        (0.5, 0)
    """
    chosen, problem, read, tensor = _prepare(
        "find_mask", weight, pattern, solver, scores, layout, groups, threads
    )
    outcome = _run("find_mask", chosen, problem, read, tensor, certify=False)
    return _mask(outcome.kept, problem, read, tensor, weight)


def fill_mask(
    out: torch.Tensor,
    weight: torch.Tensor,
    pattern: str | Pattern,
    *,
    solver: str | Solver | type[Solver] = "auto",
    scores: torch.Tensor | None = None,
    layout: LayoutName | Layout = "linear",
    groups: int = 1,
) -> torch.Tensor:
    """:func:`find_mask` into a bool tensor that exists, without waiting for the GPU.

    On a GPU a NaN is no error at once: that would have to wait. Tiles with one keep nothing, and
    are counted. Where kernels exist (docs/gpu.md) the call can be captured in a CUDA graph.

    Args:
        out: bool, in the shape of weight and on its device, any strides; every entry is written.
        weight, pattern, solver, scores, layout, groups: as in :func:`find_mask`, torch tensors.

    Returns:
        The number of tiles with a NaN, int32 [] on the device of weight; on the CPU it is 0, since
        there a NaN is an error.

    Raises:
        MaskError: if out is no such tensor.  Else as :func:`find_mask`; out is then unchanged.

    Example:
        >>> out = torch.empty(64, 128, dtype=torch.bool)
        >>> int(fill_mask(out, torch.randn(64, 128), "4:8T")), int(out.sum())
        (0, 4096)
    """
    chosen, problem, read, tensor = _prepare(
        "fill_mask", weight, pattern, solver, scores, layout, groups, None
    )
    wanted = (torch.bool, tensor.shape, tensor.device)
    if not isinstance(out, torch.Tensor) or (out.dtype, out.shape, out.device) != wanted:
        received = (
            f"{out.dtype} {tuple(out.shape)} on {out.device}"
            if isinstance(out, torch.Tensor)
            else type(out).__name__
        )
        raise MaskError(
            f"fill_mask: received out as {received}; a bool tensor of shape {tuple(tensor.shape)} "
            f"on {tensor.device} is needed; torch.empty_like(weight, dtype=torch.bool) is one"
        )
    view = read.matrices(out)
    if view.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
        problem = dataclasses.replace(problem, out=view)
    outcome = _run("fill_mask", chosen, problem, read, tensor, certify=False, wait=False)
    if outcome.kept is not problem.out:
        out.copy_(read.arrange(outcome.kept, tensor.shape))
    if outcome.nans is None:
        return torch.zeros((), dtype=torch.int32, device=tensor.device)
    return outcome.nans


def kept_matrices(
    weight: torch.Tensor,
    pattern: Pattern,
    solver: str | Solver,
    layout: Layout,
    *,
    wait: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The mask of :func:`find_mask` as its solver leaves it, for callers that store it themselves.

    Returns:
        bool [batch, rows, cols], the matrices that the layout reads in the weight, contiguous; and
        on a GPU the number of tiles with a NaN, which is an error only if it is waited for.
    """
    chosen, problem, read, tensor = _prepare(
        "find_mask", weight, pattern, solver, None, layout, 1, None
    )
    outcome = _run("find_mask", chosen, problem, read, tensor, certify=False, wait=wait)
    return outcome.kept, outcome.nans


def solve(
    scores: Any,
    pattern: str | Pattern,
    solver: str | Solver | type[Solver] = "auto",
    *,
    throw: bool = True,
    layout: LayoutName | Layout = "linear",
    groups: int = 1,
    threads: int | None = None,
) -> Solution:
    """The best mask for these scores with its objective, bound, gap, status and potentials.

        max sum_ij S_ij a_ij,   a = scores as given (pass |weight| for a mask by magnitude)

    Args:
        scores: array of scores, larger is kept; may be negative; dtypes as in :func:`find_mask`.
        pattern: the pattern to satisfy.
        solver: a name, a solver object or class.
        throw: raise SolverError when the solver does not deliver what it promises (an optimum not
            proved, a mask that violates the pattern); otherwise the status says so.
        layout, groups, threads: as in :func:`find_mask`.

    Returns:
        A :class:`Solution`.

    Raises:
        PatternError, LayoutError, ScoresError, SolverError, DeviceError: see their messages.

    Example:
        >>> solution = solve(torch.rand(16, 16), "2:4T")
        >>> solution.status.name, solution.mask.density
        ('OPTIMAL', 0.5)
    """
    chosen, problem, read, tensor = _prepare(
        "solve", scores, pattern, solver, scores, layout, groups, threads
    )
    started = time.perf_counter()
    outcome = _run("solve", chosen, problem, read, tensor, certify=True)
    seconds = time.perf_counter() - started
    mask = _mask(outcome.kept, problem, read, tensor, scores)
    objective = _objective(problem, outcome.kept)
    if mask.violations():
        status = Status.INFEASIBLE
    elif outcome.optimal:
        status = Status.OPTIMAL
    else:
        status = Status.NOT_OPTIMAL if chosen.promises_optimal else Status.FEASIBLE
    stats = {
        "solver": chosen.name,
        "threads": problem.threads,
        "seconds": seconds,
        **outcome.stats,
    }
    bound = outcome.bound
    if outcome.optimal and bound == float("inf"):
        bound = objective
    solution = Solution(mask, objective, bound, status, stats, outcome.potentials)
    if throw and not status.ok:
        raise SolverError(
            f"solve: {chosen.name} on scores of shape {tuple(tensor.shape)} with {problem.pattern} "
            f"ended as {status.name} ({status.value}); relative gap {solution.gap:.3g}; use "
            "solver='exact', or pass throw=False to receive the mask with this status"
        )
    return solution


def _prepare(
    operation: str,
    weight: Any,
    pattern: str | Pattern,
    solver: str | Solver | type[Solver],
    scores: Any | None,
    layout: LayoutName | Layout,
    groups: int,
    threads: int | None,
) -> tuple[Solver, Problem, Layout, torch.Tensor]:
    parsed = Pattern.parse(pattern)
    chosen = make_solver(solver)
    if isinstance(chosen, Auto):
        chosen = chosen.choose(parsed)
    if not chosen.accepts(parsed):
        raise SolverError(
            f"{operation}: solver {chosen.name!r} does not find masks of pattern {parsed} (it "
            f"accepts {' and '.join(chosen.structures)} patterns); use solver='auto', which takes "
            f"{Auto().choose(parsed).name!r} here"
        )
    tensor = to_scores(weight, operation, ANYWHERE)
    read = Layout.of(layout, groups)
    read.check(tensor.shape, operation)
    magnitude = scores is None
    if scores is not None and scores is not weight:
        given = to_scores(scores, f"{operation} (scores)", ANYWHERE)
        if given.shape != tensor.shape:
            raise ScoresError(
                f"{operation}: received scores of shape {tuple(given.shape)} for a weight of shape "
                f"{tuple(tensor.shape)}; they must be equal; give one score per weight"
            )
        if given.device != tensor.device:
            raise DeviceError(
                f"{operation}: received scores on {given.device} for a weight on {tensor.device}; "
                "they must be on one device; move the scores with .to(weight.device)"
            )
        tensor = given
    if threads is None:
        threads = torch.get_num_threads()
    elif (
        isinstance(threads, bool)
        or not isinstance(threads, int)
        or not (1 <= threads <= MAX_THREADS)
    ):
        raise SolverError(
            f"{operation}: received threads={threads!r}; it must be an integer from 1 to "
            f"{MAX_THREADS}; leave it out to use torch.get_num_threads()"
        )
    problem = Problem(read.matrices(tensor), parsed, magnitude, threads)
    return chosen, problem, read, tensor


def _run(
    operation: str,
    chosen: Solver,
    problem: Problem,
    read: Layout,
    tensor: torch.Tensor,
    *,
    certify: bool,
    wait: bool = True,
) -> Outcome:
    try:
        outcome = chosen.solve(problem, certify=certify)
        if wait and outcome.nans is not None and int(outcome.nans):
            problem.check_nan()
        return outcome
    except NanScoreError as error:
        raise ScoresError(
            f"{operation}: the score at index {read.index(error.place, tensor.shape)} of shape "
            f"{tuple(tensor.shape)} is NaN; scores must be numbers (infinities are allowed); find "
            "where the NaN comes from, or replace it with torch.nan_to_num"
        ) from None


def _objective(problem: Problem, kept: torch.Tensor) -> float:
    if problem.matrices.is_cpu:
        return _core.kept_sum(problem.matrices, kept, problem.magnitude, problem.threads)
    return float(torch.where(kept, problem.scores(), 0).sum(dtype=torch.float64))


def _mask(
    kept: torch.Tensor, problem: Problem, read: Layout, tensor: torch.Tensor, source: Any
) -> Mask:
    mask = Mask(read.restore(kept, tensor.shape), problem.pattern, layout=read)
    return mask.like(source)
