"""What repair and local search must do, on whatever device: the masks of the native solvers."""

from __future__ import annotations

import dataclasses
import math

import torch

from score_families import make_scores
from transposable import Greedy, Pattern, TwoApprox
from transposable.kernels import search, walk
from transposable.kernels.search import naive
from transposable.kernels.walk import naive as naive_walk
from transposable.problem import Problem

SOLVERS = (
    Greedy(),
    Greedy(sweeps=0),
    Greedy(repair=False, sweeps=1),
    Greedy(sweeps=2),
    TwoApprox(repair=True),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def batch_of(name: str, rows: int, cols: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Two matrices of a family, [2, rows, cols]; finite ones stay finite."""
    scores = torch.stack([make_scores(name, rows, cols, seed + i) for i in range(2)])
    if dtype == torch.float16:
        scores = torch.where(scores.isinf(), scores, scores.clamp(-65504.0, 65504.0))
    return scores.to(dtype)


def native(solver: Greedy | TwoApprox, problem: Problem) -> torch.Tensor:
    """The mask by the code for the CPU."""
    host = dataclasses.replace(problem, matrices=problem.matrices.cpu(), out=None)
    return solver.run(host, certify=False).kept


def by_twins(solver: Greedy | TwoApprox, problem: Problem) -> torch.Tensor:
    """The mask by the twins of the kernels that the solver launches."""
    kept = torch.ones(problem.matrices.shape, dtype=torch.bool)
    n, m = problem.pattern.n, problem.pattern.m
    arguments = (problem.matrices.cpu(), kept, n, m, problem.magnitude)
    if isinstance(solver, TwoApprox):
        naive_walk.fill(*arguments, how="prune")
        naive_walk.fill(*arguments, how="refill")
        naive.improve(*arguments, repair=True, sweeps=0)
    else:
        naive_walk.fill(*arguments, how="keep")
        naive.improve(*arguments, repair=solver.repair, sweeps=solver.sweeps)
    return kept


def same_as_native(solver: Greedy | TwoApprox, problem: Problem, what: str) -> None:
    """The kernels' mask is the native one, entry for entry; memory is poisoned beforehand."""
    out = torch.ones(problem.matrices.shape, dtype=torch.bool, device=problem.matrices.device)
    outcome = solver.on_gpu(dataclasses.replace(problem, out=out), certify=False)
    assert outcome.kept is out
    assert outcome.nans is not None
    assert int(outcome.nans) == 0, what
    wanted = native(solver, problem)
    assert torch.equal(out.cpu(), wanted), (what, solver, int((out.cpu() != wanted).sum()))


def families(
    device: str,
    names: list[str],
    n: int,
    m: int,
    solvers: tuple[Greedy | TwoApprox, ...] = SOLVERS,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> None:
    """Full and cropped tiles, signed scores and magnitudes; dtypes in turn."""
    pattern = Pattern(n, m, "transposable")
    for at, name in enumerate(names):
        scores = batch_of(name, 2 * m + m // 2 + 1, 2 * m - 1, at, dtypes[at % len(dtypes)])
        scores = scores.to(device)
        for turn, solver in enumerate(solvers):
            problem = Problem(scores, pattern, (at + turn) % 2 == 0, 1)
            same_as_native(solver, problem, f"{name} {pattern}")


def cropped(device: str, n: int, m: int) -> None:
    """Every size of a cropped tile, where single entries move: signed scores, ties among them."""
    pattern = Pattern(n, m, "transposable")
    for rows in range(1, m + 1):
        for cols in range(1, m + 1):
            scores = batch_of("gaussian", rows, cols, rows * m + cols, torch.float32)
            scores = scores.mul(2).round().to(device) if (rows + cols) % 2 else scores.to(device)
            same_as_native(Greedy(), Problem(scores, pattern, False, 1), f"{rows} x {cols}")


def strides(device: str, n: int, m: int) -> None:
    """Any strides of scores and mask, and nothing written beside the mask."""
    scores = batch_of("gaussian", 2 * m + 1, 3 * m, 7, torch.float32).to(device)
    pattern = Pattern(n, m, "transposable")
    spread = torch.full((2, 4 * m + 2, 6 * m), math.nan, device=device)[:, ::2, 1::2]
    spread.copy_(scores)
    for solver in (Greedy(), TwoApprox(repair=True)):
        wanted = native(solver, Problem(scores, pattern, False, 1))
        for matrices in (spread, scores.mT.contiguous().mT):
            whole = torch.zeros(2, 3 * m, 4 * m + 2, dtype=torch.bool, device=device)
            out = whole[:, :, ::2].mT
            solver.on_gpu(Problem(matrices, pattern, False, 1, out), certify=False)
            assert torch.equal(out.cpu(), wanted)
            assert not whole[:, :, 1::2].any()


def nans(device: str, n: int, m: int) -> None:
    """A tile with a NaN keeps nothing and is counted once; the others are as they were."""
    scores = batch_of("gaussian", 3 * m, 2 * m + 1, 9, torch.float32)
    pattern = Pattern(n, m, "transposable")
    for solver in (Greedy(), TwoApprox(repair=True)):
        wanted = native(solver, Problem(scores, pattern, False, 1))
        broken = scores.clone()
        broken[1, m + 1, 1], broken[0, 0, 2 * m] = math.nan, -math.nan
        wanted[1, m : 2 * m, :m] = wanted[0, :m, 2 * m :] = False
        outcome = solver.on_gpu(Problem(broken.to(device), pattern, False, 1), certify=False)
        assert torch.equal(outcome.kept.cpu(), wanted)
        assert int(outcome.nans) == 2  # type: ignore[arg-type]


def odd_masks(device: str, n: int, m: int) -> None:
    """Masks with room, which no walk leaves: a repair that finds no exchange ends."""
    scores = batch_of("gaussian", m, 2 * m, 3, torch.float32).to(device)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    search.improve(scores, kept, n, m, True, repair=True, sweeps=3)
    assert not kept.any()
    walk.fill(scores, kept, n, m, True, how="keep")
    most = kept.sum()
    search.improve(scores, kept, n, m, True, repair=True, sweeps=2**40)
    assert kept.sum() >= most
    assert (kept.sum(2) == 2 * n).all()


def empty(device: str) -> None:
    """No tiles: nothing is launched."""
    for shape in ((0, 8, 8), (1, 0, 8), (1, 8, 0)):
        scores = torch.zeros(shape, device=device)
        kept = torch.zeros(shape, dtype=torch.bool, device=device)
        search.improve(scores, kept, 2, 4, True, repair=True, sweeps=3)
