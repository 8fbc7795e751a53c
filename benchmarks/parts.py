"""The parts of the benchmark, each on one pattern: speed and inputs, paths, memory, peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks import gate, isolated
from benchmarks.gate import Candidate, GateError, GateReport
from benchmarks.harness import Contender, Sample, Series, interleave, ratio, timed
from benchmarks.inputs import as_matrix, as_tiles, gaussian, tie_heavy
from benchmarks.machine import usable_cores
from benchmarks.peers import PEERS, Peer
from benchmarks.prototype import Prototype, Unavailable
from benchmarks.quality import Quality, compare, kept_per_tile
from transposable import Pattern


@dataclass(slots=True)
class Run:
    """What the parts share: options, inputs, and the lines that say what was left out and why."""

    size: int
    seed: int
    repeats: int
    peer_repeats: int
    quick: bool
    candidate: Candidate
    say: Callable[[str], None]
    matrix: torch.Tensor = field(init=False)
    ties: dict[str, torch.Tensor] = field(init=False)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.matrix = gaussian(self.size, self.seed)
        self.ties = tie_heavy(self.matrix, self.seed)

    def skip(self, what: str, why: object) -> None:
        """Leave something out, visibly; the same line once."""
        line = f"skipped: {what}: {why}"
        if line not in self.skipped:
            self.skipped.append(line)
            self.say(line)

    def inputs(self) -> dict[str, torch.Tensor]:
        """Every timed matrix by name."""
        return {"Gaussian": self.matrix, "bf16": self.matrix.bfloat16(), **self.ties}


def check(run: Run, pattern: Pattern, report: GateReport) -> None:
    """The gate for one pattern; keeps the optimum of every tile for the parts that need it.

    Raises:
        GateError: if anything about to be timed is wrong.
    """
    gate.check_families(run.candidate, pattern, 1 if run.quick else 4, run.seed, report)
    for name, matrix in run.inputs().items():
        first = name == "Gaussian"
        kept = gate.check_timed(run.candidate, matrix, pattern, 1, name, report, verify=first)
        if first:
            run.best[str(pattern)] = kept_per_tile(matrix, kept, pattern.m)
    kept = gate.check_timed(run.candidate, run.matrix, pattern, 2, "Gaussian", report)
    gate.check_same_objective(
        run.matrix, kept, pattern, run.best[str(pattern)], f"gate: {pattern} with 2 threads"
    )


def speed(run: Run, pattern: Pattern, prototype: Prototype | None) -> dict[str, Any]:
    """Our solver with one and two threads, on every kind of input, and the prototype."""
    find = run.candidate.find
    two = usable_cores() >= 2
    if not two:
        run.skip("two threads", "this process may use one core only")
    calls: dict[str, Callable[[], object]] = {
        "1 thread": partial(find, run.matrix, pattern, threads=1)
    }
    if two:
        calls["2 threads"] = partial(find, run.matrix, pattern, threads=2)
    for name, matrix in run.inputs().items():
        if name != "Gaussian":
            calls[name] = partial(find, matrix, pattern, threads=1)
    if prototype is not None:
        try:
            calls |= _prototype_calls(run, pattern, prototype, two)
        except (Unavailable, GateError) as error:
            run.skip(f"prototype, {pattern}", error)
    series = _interleaved(calls, run.repeats)
    one = series["1 thread"]
    ratios: dict[str, Any] = {}
    if two:
        ratios["speed_up_2_threads"] = ratio(one, series["2 threads"])
    for name in ("bf16", *run.ties):
        ratios[f"{name} / Gaussian"] = ratio(series[name], one)
    if "prototype, 1 thread" in series:
        for clock in ("cpu", "wall"):
            below = series["prototype, 1 thread"]
            ratios[f"prototype, {clock}"] = ratio(one, below, clock)
            below = series["prototype, 1 thread, new mask"]
            ratios[f"prototype with a new mask, {clock}"] = ratio(one, below, clock)
    if "prototype, 2 threads" in series:
        ratios["prototype, 2 threads, wall"] = ratio(
            series["2 threads"], series["prototype, 2 threads"]
        )
    return {
        "times": {name: one_series.summary() for name, one_series in series.items()},
        "ratios": ratios,
    }


def _prototype_calls(
    run: Run, pattern: Pattern, prototype: Prototype, two: bool
) -> dict[str, Callable[[], object]]:
    # Touched beforehand: the prototype's published figures are for a mask that already exists.
    mask = torch.zeros(run.matrix.shape, dtype=torch.bool)
    solve = partial(prototype.solve, run.matrix, pattern)
    kept = solve(1, mask)
    gate.check_same_objective(
        run.matrix, kept, pattern, run.best[str(pattern)], "the prototype's mask"
    )
    calls: dict[str, Callable[[], object]] = {
        "prototype, 1 thread": partial(solve, 1, mask),
        "prototype, 1 thread, new mask": lambda: solve(1, torch.empty_like(mask)),
    }
    if two:
        calls["prototype, 2 threads"] = partial(solve, 2, mask)
    return calls


def paths(run: Run, patterns: list[Pattern]) -> dict[str, dict[str, Any]]:
    """The instruction-set paths, each in a process of its own, one thread, by pattern."""
    workers = [isolated.Worker(path, run.size, run.seed) for path in isolated.ISA_PATHS]
    ready = []
    try:
        for worker in workers:
            try:
                worker.ready()
                ready.append(worker)
            except Unavailable as error:
                run.skip(f"instruction-set path {worker.path}", error)
        return {str(pattern): _paths(run, ready, str(pattern)) for pattern in patterns}
    finally:
        for worker in workers:
            worker.close()


def _paths(run: Run, workers: list[isolated.Worker], pattern: str) -> dict[str, Any]:
    contenders = []
    for worker in workers:
        worker.check(pattern)
        contenders.append(Contender(worker.path, partial(worker.sample, pattern)))
    series = interleave(contenders, run.repeats)
    best = series.get("avx512")
    return {
        "times": {name: one.summary() for name, one in series.items()},
        "ratios": {name: ratio(one, best) for name, one in series.items()} if best else {},
    }


def memory(run: Run, patterns: list[Pattern]) -> dict[str, dict[str, Any]]:
    """Peak growth of the resident set over input + output, by pattern; side by side, untimed."""
    running = {str(p): isolated.PeakMemory(str(p), run.size, run.seed) for p in patterns}
    results = {}
    try:
        for pattern, process in running.items():
            try:
                results[pattern] = process.result()
            except Unavailable as error:
                run.skip(f"memory, {pattern}", error)
    finally:
        for process in running.values():
            process.close()
    return results


def peers(run: Run, pattern: Pattern) -> list[dict[str, Any]]:
    """Every peer on the first tiles of the Gaussian matrix, one thread each."""
    n, m = pattern.n, pattern.m
    best = run.best[str(pattern)]
    calls: dict[str, Callable[[], object]] = {}
    found: dict[str, tuple[Peer, Quality]] = {}
    for peer in PEERS:
        if reason := peer.missing():
            run.skip(peer.label, reason)
            continue
        scores, matrix = _peer_input(run, peer, m)
        kept = peer.run(scores, n, m)  # the warm-up, and what the quality is read from
        if not peer.whole:
            kept = as_matrix(kept, 1)
        found[peer.name] = peer, compare(matrix, kept, best, n, m)
        calls[peer.name] = partial(peer.run, scores, n, m)
        run.say(f"  {pattern}: {peer.label}, {found[peer.name][1].tiles:,} tiles a round")
    series = _interleaved(calls, run.peer_repeats, warmup=0)
    ours, total = found["exact"][1].tiles, len(best)
    rows = []
    for name, (peer, quality) in found.items():
        per_tile = series[name].median() / quality.tiles
        scale = quality.tiles / ours
        against = ratio(series[name], series["exact"])
        rows.append(
            {
                "name": name,
                "label": peer.label,
                "exact": peer.exact,
                "ours": peer.whole,
                "scaled": quality.tiles < total,
                "seconds_per_matrix": per_tile * total,
                "times_exact": {key: value / scale for key, value in against.items()},
                "measured": series[name].summary(),
                **quality.as_dict(),
            }
        )
    return rows


def _peer_input(run: Run, peer: Peer, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the peer is given, and the matrix whose mask it finds."""
    across = run.size // m
    count = peer.tiles(m, across * across, run.quick)
    strips = run.matrix[: -(-count // across) * m]
    if peer.whole:
        return strips, strips
    tiles = as_tiles(strips, m)[:count]
    return tiles.abs().contiguous(), as_matrix(tiles, 1)


def _interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, Series]:
    contenders = [Contender(name, _measured(call)) for name, call in calls.items()]
    return interleave(contenders, rounds, warmup)


def _measured(call: Callable[[], object]) -> Callable[[], Sample]:
    return timed(call)
