"""How long one direction of a linear layer takes, dense and sparse, side by side."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal, get_args

import torch
from torch.nn import functional as F

from transposable.api import find_mask
from transposable.pattern import Pattern
from transposable.sparse.ops import nm_linear
from transposable.sparse.packed import PackedWeight
from transposable.sparse.stream import Blocking, Stream

Direction = Literal["forward", "input_gradient", "weight_gradient"]
DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)

Part = Literal[Direction, "refresh", "refresh_transposed"]
"""What is timed: a direction, or what a changed weight costs before the two streams can run."""

BUDGET: Final = 0.25
"""Seconds for one part; a repetition that has begun is finished."""

MAX_WORK: Final = 1 << 30
"""Multiplications of one dense call for each thread: about 20 ms at 100 GFLOP/s."""

MAX_WEIGHTS: Final = 1 << 22
"""More are far from fitting into a cache, as these are."""

MIN_TOKENS: Final = 256
"""Tokens that a slice keeps: beyond this the ratio changes little."""

MOST_TOKENS: Final = 2048
"""More are taken for as many: the ratio has long settled."""

_FEWEST: Final = 5
_MOST: Final = 21
_SAMPLE: Final = 5e-4  # seconds, so that the clock and its call are small against what they time
INTEGERS: Final = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_TILE: Final = 512  # side of the mask that is repeated: exact, and found in milliseconds


@dataclass(frozen=True, slots=True)
class Question:
    """A matmul: weight [rows, cols] = [out, in] with a pattern, times so many tokens.

    Example:
        >>> Question(1024, 4096, Pattern.parse("4:8T"), 256, torch.float32, 1).key("forward")
        'forward 1024x4096 4:8T 256 tokens float32 1 threads'
    """

    rows: int
    cols: int
    pattern: Pattern
    tokens: int
    dtype: torch.dtype
    threads: int

    unit: ClassVar[str] = "tokens"

    @property
    def sides(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.rows, self.cols

    @property
    def weights(self) -> int:
        """Entries of the weight."""
        return self.rows * self.cols

    def rounded(self) -> Question:
        """The question with its tokens rounded down to a power of two, at most MOST_TOKENS."""
        tokens = min(1 << (self.tokens.bit_length() - 1), MOST_TOKENS)
        return self if tokens == self.tokens else replace(self, tokens=tokens)

    def key(self, part: Part) -> str:
        """The name of a measurement in the cache."""
        return (
            f"{part} {self.rows}x{self.cols} {self.pattern} {self.tokens} tokens "
            f"{str(self.dtype).removeprefix('torch.')} {self.threads} threads"
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a call, medians, and the ratio dense / sparse: its median and lower quartile.

    Where a slice was timed, the seconds are those of the whole in proportion.
    """

    dense: float
    sparse: float
    ratio: float
    low: float


def compare(
    dense: Callable[[], object],
    sparse: Callable[[], object],
    *,
    clock: Callable[[], float] = time.perf_counter,
    seconds: float = BUDGET,
    sample: float = _SAMPLE,
) -> Timing:
    """Time two calls in turns.

        ratio = median over pairs of dense / sparse

    The two of a pair run one after the other, in changing order, so that what slows the machine
    down for a while slows both. One call of each goes before, untimed.

    Args:
        dense, sparse: what is timed.
        clock: seconds now.
        seconds: for everything, by that clock; at least 5 pairs are timed.
        sample: seconds of one timing, which repeats calls that are shorter.

    Example:
        >>> ticks = iter(range(10_000))
        >>> compare(lambda: next(ticks), lambda: None, clock=lambda: float(next(ticks))).ratio
        2.0
    """
    started = clock()
    dense()
    sparse()
    repeat = _repetitions(dense, sparse, clock, sample)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < _FEWEST or (len(pairs) < _MOST and clock() - started < seconds):
        if len(pairs) % 2:
            sparse_time = _time(sparse, repeat, clock)
            dense_time = _time(dense, repeat, clock)
        else:
            dense_time = _time(dense, repeat, clock)
            sparse_time = _time(sparse, repeat, clock)
        pairs.append((dense_time, sparse_time))
    ratios = [one / max(other, 1e-12) for one, other in pairs]
    return Timing(
        dense=statistics.median(one for one, _ in pairs),
        sparse=statistics.median(other for _, other in pairs),
        ratio=statistics.median(ratios),
        low=statistics.quantiles(ratios, n=4)[0],
    )


def _repetitions(
    dense: Callable[[], object],
    sparse: Callable[[], object],
    clock: Callable[[], float],
    sample: float,
) -> int:
    shortest = min(_time(dense, 1, clock), _time(sparse, 1, clock))
    return max(1, min(100, round(sample / max(shortest, 1e-9))))


def _time(call: Callable[[], object], repeat: int, clock: Callable[[], float]) -> float:
    begun = clock()
    for _ in range(repeat):
        call()
    return (clock() - begun) / repeat


def measure(question: Question, parts: Collection[Part]) -> dict[Part, Timing]:
    """Time parts of a linear layer, on random numbers under an exact mask of the pattern.

    ==================  ====================  ===================================
    part                dense                 sparse
    ==================  ====================  ===================================
    forward             x W^T (``F.linear``)  ``nm_linear``
    input_gradient      dy W                  its gradient for x
    weight_gradient     dy^T x                its gradient for W, kept entries
    refresh             S * W                 the values of W into their stream
    refresh_transposed  S * W                 the values of W^T into theirs
    ==================  ====================  ===================================

    The dense side has its zeros in place; the sparse side is the whole operator, which looks
    whether its weight has changed. Of a large layer a slice is measured: at most ``MAX_WORK``
    multiplications in a call for each thread, and ``MAX_WEIGHTS`` weights; first the tokens are
    fewer, then the outputs.

    Args:
        question: what is to run, float32 or bfloat16. Its threads are set for all of torch
            meanwhile.
        parts: what of it.

    Complexity: at most about ``BUDGET`` seconds for each part, more on a machine that takes longer
    for 5 repetitions.
    """
    with undisturbed(question.threads):
        return {part: _measure(question, part) for part in parts}


def _measure(question: Question, part: Part) -> Timing:
    rows, cols, tokens = sliced(question, part)
    mask = pattern_mask(rows, cols, question.pattern)
    weight = numbers(rows, cols).to(question.dtype)
    masked = weight * mask
    # What else the machine does then counts for nothing; with more threads there is no such clock.
    clock = time.thread_time if question.threads == 1 else time.perf_counter
    compared = functools.partial(compare, clock=clock)
    ops = torch.ops.transposable
    if part in ("refresh", "refresh_transposed"):
        source, kept = weight, mask
        if part == "refresh_transposed":
            source, kept = weight.t(), mask.t()
        blocking = Blocking.best(question.pattern, source.shape[1])
        stream = Stream.build(kept, blocking, question.dtype)
        bits = weight.view(INTEGERS[question.dtype])
        timing = compared(lambda: bits * mask, lambda: stream.fill(source))
    else:
        x = numbers(tokens, cols).to(question.dtype)
        dy = numbers(tokens, rows).to(question.dtype)
        packed = PackedWeight(question.pattern)
        known = weight, mask, packed.tag
        if part == "forward":
            timing = compared(
                lambda: F.linear(x, masked),
                lambda: nm_linear(x, weight, mask, None, packed.tag),
            )
        elif part == "input_gradient":
            timing = compared(lambda: dy @ masked, lambda: ops.nm_input_gradient(dy, *known))
        else:
            timing = compared(
                lambda: dy.t() @ x,
                lambda: ops.nm_weight_gradient(x, dy, mask, packed.tag),
            )
    scale = question.rows * question.cols / (rows * cols)
    if part not in ("refresh", "refresh_transposed"):
        scale *= question.tokens / tokens
    return Timing(timing.dense * scale, timing.sparse * scale, timing.ratio, timing.low)


def sliced(question: Question, part: Part) -> tuple[int, int, int]:
    """(rows, cols, tokens) of what is measured instead of all.

    Example:
        >>> sliced(Question(64, 64, Pattern.parse("2:4T"), 512, torch.float32, 1), "forward")
        (64, 64, 512)
        >>> sliced(Question(4096, 4096, Pattern.parse("2:4T"), 512, torch.float32, 1), "forward")
        (1024, 4096, 256)
    """
    rows, cols, tokens = question.rows, question.cols, question.tokens
    most = MAX_WORK * question.threads
    if part in ("refresh", "refresh_transposed"):
        tokens = MIN_TOKENS  # a pass over the weight takes as long as the product with few tokens
    if rows * cols * tokens > most:
        tokens = max(min(tokens, MIN_TOKENS), most // (rows * cols))
    weights = min(MAX_WEIGHTS * question.threads, most // tokens)
    if rows * cols > weights:
        if part in ("input_gradient", "refresh_transposed"):
            cols = min(cols, _rounded(weights // rows))
        else:
            rows = min(rows, _rounded(weights // cols))
    return rows, cols, tokens


def _rounded(length: int) -> int:
    return max(_TILE // 8, length // 64 * 64)


def pattern_mask(rows: int, cols: int, pattern: Pattern) -> torch.Tensor:
    """An exact mask of random weights, repeated: the work depends on the kinds of its columns."""
    side = -(-_TILE // pattern.m) * pattern.m
    weight = numbers(min(rows, side), min(cols, side), tile=side)
    return _repeated(find_mask(weight, pattern).tensor, rows, cols)


def numbers(rows: int, cols: int, tile: int = _TILE) -> torch.Tensor:
    """Random numbers of this program's own, repeated since a large matrix of them takes long."""
    random = torch.Generator().manual_seed(0)
    shape = min(rows, tile), min(cols, tile)
    drawn = torch.randn(shape, generator=random, dtype=torch.float32, device="cpu")
    return _repeated(drawn, rows, cols)


def _repeated(tile: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    height, width = tile.shape
    return tile.repeat(-(-rows // height), -(-cols // width))[:rows, :cols].contiguous()


@contextlib.contextmanager
def undisturbed(threads: int) -> Iterator[None]:
    """Without autograd and autocast, at that number of threads."""
    before = torch.get_num_threads()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        if threads != before:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if threads != before:
                torch.set_num_threads(before)
