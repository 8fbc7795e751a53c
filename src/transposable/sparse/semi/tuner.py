"""Tuner: the fastest algorithm of a library that has been seen to compute the right thing."""

from __future__ import annotations

import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import torch

from transposable.sparse.cache import Entry, PlanCache
from transposable.sparse.semi import probe
from transposable.sparse.semi.formats import REFERENCE, Format
from transposable.sparse.semi.operand import GROUP, KEPT, TOKEN_MULTIPLE, Algorithm, Operand
from transposable.sparse.semi.proof import why_unsound

TOLERANCE: Final = 2.0**-6
"""Relative error of an entry: the operands are small integers, so that float32 sums are exact."""

FINALISTS: Final = 4
KEPT_ALGORITHMS: Final = 3
QUICK_ROUNDS: Final = 3
ROUNDS: Final = 9
SAMPLE: Final = 2e-3
"""Seconds of one sample."""

_SLICE: Final = 4096  # rows of a result that are compared at a time


@dataclass(frozen=True, slots=True)
class Case:
    """A product that has to be computed: A [rows, cols], packed, with so many tokens.

    Attributes:
        format: of A.
        rows, cols: of A.
        tokens: rows of x in x A^T; columns of B in A B.
        dtype, bias, device: as they say.
        left: whether it is A B.
    """

    format: Format
    rows: int
    cols: int
    tokens: int
    dtype: torch.dtype
    bias: bool
    device: torch.device
    left: bool = False

    def coarse(self) -> Case:
        """The case with tokens rounded down to three bits; algorithms are timed for that one.

        Example:
            >>> case = Case(REFERENCE, 64, 64, 13008, torch.bfloat16, False, torch.device("cpu"))
            >>> case.coarse().tokens
            12288
        """
        drop = max(self.tokens.bit_length() - 3, 0)
        tokens = max(self.tokens >> drop << drop, TOKEN_MULTIPLE)
        return replace(self, tokens=tokens + -tokens % TOKEN_MULTIPLE)

    def exact(self) -> Case:
        """The case with the tokens that the library sees."""
        return replace(self, tokens=self.tokens + -self.tokens % TOKEN_MULTIPLE)

    def key(self) -> str:
        """The name of its algorithms in the cache."""
        dtype = str(self.dtype).removeprefix("torch.")
        layout = "A B" if self.left else "x A^T + b" if self.bias else "x A^T"
        return (
            f"algorithm {self.format.name} {layout} {self.rows}x{self.cols} {self.tokens} tokens "
            f"{dtype}"
        )


@dataclass(slots=True)
class Report:
    """What a tuning found.

    Attributes:
        case: what was asked, with coarse tokens.
        ranking: those that are right, fastest first, with their seconds.
        rejected: why, by algorithm.
    """

    case: Case
    ranking: list[tuple[Algorithm, float]] = field(default_factory=list)
    rejected: dict[Algorithm, str] = field(default_factory=dict)


class Bench(Protocol):
    """Runs and times algorithms of a case; tests put a made-up one in its place."""

    def algorithms(self) -> Iterable[Algorithm]:
        """What there is to choose from."""

    def problem(self, algorithm: Algorithm, seed: int) -> str | None:
        """What is wrong with its result on the operands of a seed, or None."""

    def seconds(self, algorithm: Algorithm) -> float:
        """Of one call, over a sample of calls."""


class GpuBench:
    """The products of a case on small random integers, whose float32 sums are exact.

    Args:
        case: what is computed.
        clock: seconds now, after the device has done all its work.
    """

    def __init__(self, case: Case, clock: Callable[[], float] | None = None) -> None:
        self.case = case
        self._clock = clock or functools.partial(device_clock, case.device)
        self._inputs: dict[int, _Inputs] = {}

    def algorithms(self) -> Iterable[Algorithm]:
        given = self._given(0)
        return self.case.format.algorithms(
            given.operand, given.dense, given.bias, left=self.case.left
        )

    def problem(self, algorithm: Algorithm, seed: int) -> str | None:
        given = self._given(seed)
        # What is freed here is what the product is likely to be written to: unwritten, it is NaN.
        torch.full_like(given.wanted, torch.nan, dtype=self.case.dtype)
        found = self._run(algorithm, given)
        if found.shape != given.wanted.shape or found.dtype != self.case.dtype:
            return f"{tuple(found.shape)} of {found.dtype}"
        if not found.is_contiguous():
            return "not contiguous"
        wrong = 0
        for start in range(0, len(found), _SLICE):
            got, want = found[start : start + _SLICE], given.wanted[start : start + _SLICE]
            close = (got.float() - want).abs() <= TOLERANCE * want.abs()  # so that NaN fails too
            wrong += int((~close).sum())
        return f"{wrong} of {found.numel()} entries are wrong" if wrong else None

    def seconds(self, algorithm: Algorithm) -> float:
        given = self._given(0)
        self._run(algorithm, given)
        once = self._timed(algorithm, given, 1)
        return self._timed(algorithm, given, max(1, min(200, round(SAMPLE / max(once, 1e-7)))))

    def _timed(self, algorithm: Algorithm, given: _Inputs, repeat: int) -> float:
        begun = self._clock()
        for _ in range(repeat):
            self._run(algorithm, given)
        return (self._clock() - begun) / repeat

    def _run(self, algorithm: Algorithm, given: _Inputs) -> torch.Tensor:
        if self.case.left:
            return self.case.format.left_matmul(given.operand, given.dense, algorithm)
        return self.case.format.matmul(given.operand, given.dense, given.bias, algorithm)

    def _given(self, seed: int) -> _Inputs:
        if seed not in self._inputs:
            for old in [key for key in self._inputs if key > 1]:
                del self._inputs[old]  # a large result in float32 for each
            self._inputs[seed] = _Inputs.make(self.case, seed)
        return self._inputs[seed]


@dataclass(frozen=True, slots=True)
class _Inputs:
    operand: Operand
    dense: torch.Tensor
    bias: torch.Tensor | None
    wanted: torch.Tensor

    @classmethod
    def make(cls, case: Case, seed: int) -> _Inputs:
        random = torch.Generator(case.device).manual_seed(seed)
        mask = random_two_of_four(case.rows, case.cols, random)
        shape = (case.cols, case.tokens) if case.left else (case.tokens, case.cols)
        weight = integers((case.rows, case.cols), random)
        dense = integers(shape, random)
        bias = integers((case.rows,), random) if case.bias else None
        kept = torch.where(mask, weight, 0.0)
        wanted = kept @ dense if case.left else dense @ kept.t()
        if bias is not None:
            wanted = wanted + bias
        operand = case.format.pack(weight, mask, case.dtype, transposed=False)
        cast = None if bias is None else bias.to(case.dtype)
        return cls(operand, dense.to(case.dtype), cast, wanted)


class Tuner:
    """Algorithms by case: from memory, else the cache on disk, else tried and timed now.

    An algorithm is used for a number of tokens only after its result for just that number has been
    checked in this process, whatever the cache says: on operands of a seed of its own. With
    ``torch.use_deterministic_algorithms(True)`` nothing is timed; the library's first algorithm
    runs if it is right.

    Args:
        cache: of algorithms on disk; None for none.
        bench: what runs the candidates of a case.

    Attributes:
        reports: what was tuned in this process.
    """

    def __init__(
        self, cache: PlanCache | None = None, bench: Callable[[Case], Bench] = GpuBench
    ) -> None:
        self._cache = cache
        self._bench = bench
        self._known: dict[tuple[Case, bool], Algorithm | None] = {}
        self._ranked: dict[Case, list[Algorithm]] = {}
        self._from_disk: set[Case] = set()
        self._sound: dict[tuple[Format, torch.device, torch.dtype], str | None] = {}
        self.reports: list[Report] = []

    def algorithm(self, case: Case, *, may_measure: bool = True) -> Algorithm | None:
        """What to run, or None if nothing right was found, or may not be looked for now.

        Complexity: a dictionary lookup once it is known.
        """
        if case.format is REFERENCE:
            return Algorithm()
        fixed = torch.are_deterministic_algorithms_enabled()
        exact = case.exact()
        if (exact, fixed) in self._known:
            return self._known[exact, fixed]
        if not may_measure:
            return None
        device = case.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._first_right(exact, fixed)
        self._known[exact, fixed] = found
        return found

    def why_unsound(self, case: Case) -> str | None:
        """Why the format of a case cannot be trusted on its device at all, see :mod:`.proof`."""
        asked = case.format, case.device, case.dtype
        if asked not in self._sound:
            self._sound[asked] = why_unsound(*asked)
        return self._sound[asked]

    def _first_right(self, exact: Case, fixed: bool) -> Algorithm | None:
        if self.why_unsound(exact) is not None:
            return None
        bench = self._bench(exact)
        if fixed:
            return _first(bench, [Algorithm(), Algorithm(fused_bias=False)])
        coarse = exact.coarse()
        found = _first(bench, self._ranking(coarse))
        if found is None and coarse in self._from_disk:
            found = _first(bench, self._ranking(coarse, anew=True))
        return found

    def _ranking(self, coarse: Case, *, anew: bool = False) -> list[Algorithm]:
        if anew:
            del self._ranked[coarse]
            self._from_disk.discard(coarse)
        if coarse not in self._ranked:
            stored = None
            if self._cache is not None and not anew:
                stored = from_entry(self._cache.get(coarse.key()))
            if stored is not None:
                self._from_disk.add(coarse)
            else:
                report = tune(coarse, self._bench(coarse))
                self.reports.append(report)
                stored = [algorithm for algorithm, _ in report.ranking]
                if self._cache is not None:
                    self._cache.put({coarse.key(): to_entry(report)})
            self._ranked[coarse] = stored
        return self._ranked[coarse]


def tune(case: Case, bench: Bench) -> Report:
    """Check every algorithm on two sets of operands, time the right ones, check the fastest again.

    Args:
        case: for the report.
        bench: what runs them.

    Returns:
        At most three algorithms, fastest first; those that raised or were wrong with the reason.
    """
    report = Report(case)
    right: list[tuple[float, int, Algorithm]] = []
    for number, algorithm in enumerate(bench.algorithms()):
        # Two sets: a library that keeps what it was given in the call before is wrong in one.
        problem = _problem(bench, algorithm, 0) or _problem(bench, algorithm, 1)
        if problem is not None:
            report.rejected[algorithm] = problem
            continue
        quick = statistics.median(bench.seconds(algorithm) for _ in range(QUICK_ROUNDS))
        right.append((quick, number, algorithm))
    finalists = [algorithm for _, _, algorithm in sorted(right)[:FINALISTS]]
    times: dict[Algorithm, list[float]] = {algorithm: [] for algorithm in finalists}
    for turn in range(ROUNDS):
        for algorithm in finalists if turn % 2 == 0 else reversed(finalists):
            times[algorithm].append(bench.seconds(algorithm))
    for seconds, _, algorithm in sorted(
        (statistics.median(times[one]), place, one) for place, one in enumerate(finalists)
    ):
        problem = _problem(bench, algorithm, 2)
        if problem is not None:
            report.rejected[algorithm] = f"after it was timed: {problem}"
        elif len(report.ranking) < KEPT_ALGORITHMS:
            report.ranking.append((algorithm, seconds))
    return report


def _first(bench: Bench, algorithms: Iterable[Algorithm]) -> Algorithm | None:
    for algorithm in algorithms:
        if _problem(bench, algorithm, 3) is None:
            return algorithm
    return None


def _problem(bench: Bench, algorithm: Algorithm, seed: int) -> str | None:
    try:
        return bench.problem(algorithm, seed)
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"


def to_entry(report: Report) -> Entry:
    """A ranking as the cache holds it: numbers that are not negative."""
    entry: dict[str, float] = {"count": len(report.ranking)}
    for place, (algorithm, seconds) in enumerate(report.ranking):
        entry |= {
            f"alg_id_{place}": algorithm.alg_id,
            f"split_k_{place}": algorithm.split_k,
            f"split_k_mode_{place}": algorithm.split_k_mode + 1,
            f"fused_bias_{place}": int(algorithm.fused_bias),
            f"seconds_{place}": seconds,
        }
    return entry


def from_entry(entry: Entry | None) -> list[Algorithm] | None:
    """The ranking that an entry holds; None if it does not hold one.

    Example:
        >>> from_entry(to_entry(Report(None, [(Algorithm(3), 1e-3)])))  # type: ignore[arg-type]
        [Algorithm(alg_id=3, split_k=1, split_k_mode=-1, fused_bias=True)]
    """
    try:
        if entry is None or not 0 <= entry["count"] <= KEPT_ALGORITHMS:
            return None
        return [
            Algorithm(
                int(entry[f"alg_id_{place}"]),
                int(entry[f"split_k_{place}"]),
                int(entry[f"split_k_mode_{place}"]) - 1,
                bool(entry[f"fused_bias_{place}"]),
            )
            for place in range(int(entry["count"]))
        ]
    except KeyError:
        return None


def integers(shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    """Small whole numbers in float32; sums of a few thousand products are exact in it."""
    drawn = torch.randint(-2, 3, shape, generator=random, device=random.device)
    return drawn.to(torch.float32)


def random_two_of_four(rows: int, cols: int, random: torch.Generator) -> torch.Tensor:
    """A mask [rows, cols] with two of every four of a row, at random."""
    order = torch.rand((rows, cols // GROUP, GROUP), generator=random, device=random.device)
    return (order.argsort(-1) < KEPT).reshape(rows, cols)


def device_clock(device: torch.device) -> float:
    """Seconds now, when a device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def tuner_of(device: torch.device) -> Tuner:
    """The tuner of a device in this process, with its cache on disk if it is a GPU."""
    return _tuner(probe.with_index(device))


@functools.cache
def _tuner(device: torch.device) -> Tuner:
    cache: Any = None
    if device.type == "cuda":
        cache = PlanCache(identity=probe.gpu_identity(device))
    return Tuner(cache)
