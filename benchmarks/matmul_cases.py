"""Layers, batches and the rounds in which the dense and the sparse products meet."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol, Self

import torch

from benchmarks.harness import PAUSE_S, Contender, Sample, Series, interleave, ratio
from benchmarks.matmul_gate import Judge, MatmulGate
from benchmarks.matmul_peers import (
    DIRECTIONS,
    TORCH,
    Direction,
    Operands,
    dense_peers,
    missing,
    reorder,
)
from transposable import Pattern, _core, find_mask

LEAST_ROUNDS: Final = 5
MOST_ROUNDS: Final = 31
SAMPLE_S: Final = 0.004
"""A sample repeats its call until it lasts about this long, so that the clocks resolve it."""

REORDER: Final = "reorder of x"
PEAK_S: Final = 0.2


class StreamLike(Protocol):
    """What is used of the library's stream; a test puts a broken one in its place."""

    values: torch.Tensor

    def fill(self, weight: torch.Tensor) -> None: ...
    def matmul(self, x: torch.Tensor) -> torch.Tensor: ...
    def weight_gradient(self, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor: ...
    @property
    def nbytes(self) -> int: ...


Build = Callable[[torch.Tensor, Pattern, torch.dtype], StreamLike]
"""A stream without values, from a mask [rows, cols], its pattern and the dtype of its values."""


def build_stream(mask: torch.Tensor, pattern: Pattern, dtype: torch.dtype) -> StreamLike:
    """The library's stream, in the blocking that it takes for the pattern."""
    from transposable.sparse.stream import Blocking, Stream

    stream: StreamLike = Stream.build(mask, Blocking.best(pattern, mask.shape[1]), dtype)
    return stream


@dataclass(frozen=True, slots=True)
class Job:
    """What one process measures.

    Attributes:
        shapes: (in, out) of the layers.
        isa: the native instruction-set path; None for the one that the library takes.
        budget_s: seconds for all rounds; the fewest rounds are taken even if they last longer.
    """

    title: str
    threads: int
    shapes: list[tuple[int, int]]
    tokens: list[int]
    patterns: list[str]
    dtype: str = "float32"
    isa: str | None = None
    seed: int = 0
    budget_s: float = 600.0
    rounds: tuple[int, int] = (LEAST_ROUNDS, MOST_ROUNDS)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, read: dict[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`."""
        shapes = [(cols, rows) for cols, rows in read["shapes"]]
        return cls(**{**read, "shapes": shapes, "rounds": tuple(read["rounds"])})


@dataclass(slots=True)
class Layer:
    """A dense weight, and for every pattern its exact mask and both streams, filled."""

    weight: torch.Tensor
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    forward: dict[str, StreamLike] = field(default_factory=dict)
    backward: dict[str, StreamLike] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)


def measure(job: Job, build: Build = build_stream, say: Callable[[str], None] = print) -> Any:
    """All of a job in this process; the results as they go into the JSON file.

    Raises:
        GateError: before the wrong product is timed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    gc.collect()
    gc.freeze()  # the rounds collect garbage, and need not walk through all of torch for it
    try:
        return _measure(job, build, say)
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)


def _measure(job: Job, build: Build, say: Callable[[str], None]) -> dict[str, Any]:
    started = time.perf_counter()
    draw = torch.Generator().manual_seed(job.seed)
    report = MatmulGate()
    groups = len(job.shapes) * len(job.tokens) * len(DIRECTIONS)
    cases: list[dict[str, Any]] = []
    costs, peaks = [], []
    skipped: dict[str, None] = {}
    for cols, rows in job.shapes:
        if hasattr(_core, "fma_peak"):
            peaks.append(float(_core.fma_peak(PEAK_S)))
        layer = make_layer(job, cols, rows, build, draw)
        costs += [{"in": cols, "out": rows, "pattern": p, **c} for p, c in layer.costs.items()]
        for tokens in job.tokens:
            of = Operands(
                torch.randn(tokens, cols, generator=draw).to(layer.weight.dtype),
                torch.randn(tokens, rows, generator=draw).to(layer.weight.dtype),
                layer.weight,
            )
            for direction in DIRECTIONS:
                skipped |= dict.fromkeys(missing(direction, of))
                left = max(0.0, started + job.budget_s - time.perf_counter())
                case = _case(job, direction, of, layer, report, left / (groups - len(cases)))
                cases.append({"in": cols, "out": rows, "tokens": tokens, **case})
            say(f"{job.title}: {cols} x {rows}, {tokens} tokens")
    return {
        **job.as_dict(),
        "isa_taken": str(_core.isa()),
        "fma_peak_gflops": max(peaks) * job.threads if peaks else None,
        "gate": report.as_dict(),
        "cases": cases,
        "costs": costs,
        "skipped": list(skipped),
        "seconds": time.perf_counter() - started,
    }


def make_layer(job: Job, cols: int, rows: int, build: Build, draw: torch.Generator) -> Layer:
    """A random layer under all patterns; building and filling its streams is timed."""
    dtype: torch.dtype = getattr(torch, job.dtype)
    layer = Layer(torch.randn(rows, cols, generator=draw).to(dtype))
    for name in job.patterns:
        pattern = Pattern.parse(name)
        mask = find_mask(layer.weight, pattern, solver="exact").tensor

        def both(mask: torch.Tensor = mask, pattern: Pattern = pattern) -> list[StreamLike]:
            return [build(each, pattern, dtype) for each in (mask, mask.t())]

        (forward, backward), index_s = _median(both)

        def fill(forward: StreamLike = forward, backward: StreamLike = backward) -> None:
            forward.fill(layer.weight)
            backward.fill(layer.weight.t())

        _, fill_s = _median(fill)
        layer.masks[name], layer.forward[name], layer.backward[name] = mask, forward, backward
        layer.costs[name] = {
            "index_build_s": index_s,
            "fill_s": fill_s,
            "bytes_per_weight": forward.nbytes / mask.numel(),
            "bytes_per_weight_both": (forward.nbytes + backward.nbytes) / mask.numel(),
            "dense_bytes_per_weight": layer.weight.element_size(),
        }
    return layer


def _case(
    job: Job, direction: Direction, of: Operands, layer: Layer, report: MatmulGate, share_s: float
) -> dict[str, Any]:
    peers = list(dense_peers(direction, of))
    where = f"{direction}, {tuple(of.x.shape)} x {tuple(of.weight.shape)}, {job.threads} thread(s)"
    judge = Judge(direction, of, report)
    calls: dict[str, Callable[[], Any]] = {}
    for peer in peers:
        judge.check(f"{peer.name}, {where}", lambda p=peer: p.plain(p.call()), None)  # type: ignore[misc]
        calls[peer.name] = peer.call
    for name in job.patterns:
        calls[name] = ours = _ours(direction, of, layer, name)
        judge.check(f"{name}, {where}", ours, layer.masks[name])
    del judge
    extra = reorder(of) if direction == "forward" else None
    if extra is not None:
        calls[REORDER] = extra
    series = rounds(calls, job.rounds, share_s)
    best = min((peer.name for peer in peers), key=lambda name: series[name].median())
    return {
        "direction": direction,
        "flops": of.flops,
        "rounds": len(series[best].samples),
        "best": best,
        "dense": {peer.name: series[peer.name].summary() for peer in peers},
        "reorder": series[REORDER].summary() if extra is not None else None,
        "patterns": {
            name: {
                "density": layer.masks[name].sum().item() / layer.masks[name].numel(),
                "time": series[name].summary(),
                "ratios": {
                    "best": _both(series[best], series[name]),
                    "torch": _both(series[TORCH[direction]], series[name]),
                },
            }
            for name in job.patterns
        },
    }


def _ours(direction: Direction, of: Operands, layer: Layer, name: str) -> Callable[[], Any]:
    forward, backward = layer.forward[name], layer.backward[name]
    if direction == "forward":
        return lambda: forward.matmul(of.x)
    if direction == "input_gradient":
        return lambda: backward.matmul(of.dy)
    return lambda: forward.weight_gradient(of.x, of.dy)


def rounds(
    calls: dict[str, Callable[[], Any]], limits: tuple[int, int], share_s: float
) -> dict[str, Series]:
    """Interleaved rounds, as many as fit ``share_s``, within the limits and odd.

    The calls must have run once: what a first call sets up would be taken for its duration.
    """
    contenders, round_s = [], 0.0
    for name, call in calls.items():
        once = repeated(call, 1)().wall
        count = max(1, math.ceil(SAMPLE_S / max(once, 1e-7)))
        contenders.append(Contender(name, repeated(call, count)))
        round_s += PAUSE_S + count * once
    low, high = limits
    count = min(high, max(low, int(share_s / round_s) - 1))  # one is the warm-up
    return interleave(contenders, count - (count + 1) % 2 if count > low else count)


def repeated(call: Callable[[], object], count: int) -> Callable[[], Sample]:
    """A function that makes ``count`` calls in a row and gives the time of one."""

    def take() -> Sample:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Sample(wall / count, cpu / count)

    return take


def _both(above: Series, below: Series) -> dict[str, dict[str, float]]:
    return {clock: ratio(above, below, clock) for clock in ("wall", "cpu")}


def _median(call: Callable[[], Any], times: int = 3) -> tuple[Any, float]:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)
