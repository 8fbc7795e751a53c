"""What a refresh of the masks costs in training: ``python -m benchmarks.refresh``.

Gate first; then dense steps, steps under masks that rest, and steps that end with a refresh by the
exact solver and by the paper's 2-approximation, interleaved in one process.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import machine, refresh_tables
from benchmarks.gate import GateError
from benchmarks.harness import PAUSE_S, Clock, Sample, Series
from benchmarks.refresh_gate import Refresh, RefreshGate, check
from benchmarks.training_step import APPROXIMATION, ENDINGS, SparseTrainer, Trainer
from benchmarks.workloads import NAMES, describe, make_workload
from transposable import Pattern, PatternError

PATTERNS: Final = "2:4,4:8"
PERIOD: Final = 40
LIMITS: Final = {"exact, every step": 0.03, f"exact, every {PERIOD}": 0.002}
ROUNDS: Final = {"resnet": 40, "gpt": 20, "block": 12}
WARM_UP: Final = 2
EXIT_GATE, EXIT_TARGET = 1, 3

Steps = dict[str, dict[str, Series]]
"""Series by kind of step and part of it."""


def main(arguments: Sequence[str] | None = None, refresh: Refresh | None = None) -> int:
    """Run the command.

    Args:
        refresh: how the gate has masks refreshed; a test gives a broken one.

    Returns:
        0; 1 if the gate fails; 3 if --strict and a target is missed.
    """
    options = _parse(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        if options.from_json is not None:
            results = json.loads(options.from_json.read_text())
        else:
            results = measure(options, refresh)
    except GateError as error:
        print(f"correctness gate failed, so no time is reported\n{error}", file=sys.stderr)
        return EXIT_GATE
    finally:
        torch.set_num_threads(threads)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    refresh_tables.show(results)
    if options.markdown is not None:
        text = refresh_tables.into_markdown(options.markdown, results)
        options.markdown.write_text(text, encoding="utf-8")
    missed = [row for row in results["targets"] if row["judged"] and not row["met"]]
    return EXIT_TARGET if options.strict and missed else 0


def measure(options: argparse.Namespace, refresh: Refresh | None) -> dict[str, Any]:
    """All workloads and patterns; the results as they go into the JSON file.

    Raises:
        GateError: before anything of that workload is timed.
    """
    started = time.perf_counter()
    report = RefreshGate()
    workloads: dict[str, Any] = {}
    for name in options.workloads:
        workload = make_workload(name, quick=options.quick, seed=options.seed)
        for pattern in options.patterns:
            seconds = time.perf_counter() - started
            print(f"[{seconds:5.0f} s] {name}, {pattern}", file=sys.stderr, flush=True)
            dense, sparse = Trainer(workload), SparseTrainer(workload, str(pattern))
            check(sparse, report, refresh)
            about = describe(workload, sparse.net, sparse.layers)
            entry = workloads.setdefault(name, {**about, "patterns": {}})
            steps = take(_kinds(dense, sparse), options.rounds or ROUNDS[name])
            entry["patterns"][str(pattern)] = summarise(steps)
    return {
        "benchmark": "refresh",
        "quick": options.quick,
        "seed": options.seed,
        "threads": options.threads,
        "autocast": "bfloat16",
        "recipe": "sr-ste",
        "machine": machine.describe(),
        "gate": report.as_dict(),
        "workloads": workloads,
        "targets": judge(workloads, options.quick),
        "seconds": time.perf_counter() - started,
    }


def take(kinds: dict[str, Callable[[], dict[str, Sample]]], rounds: int) -> Steps:
    """One step of every kind per round, every other round in reverse order, as in harness.py."""
    steps: Steps = {kind: {} for kind in kinds}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(-WARM_UP, rounds):
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                time.sleep(PAUSE_S)
                for part, sample in kinds[kind]().items():
                    if number >= 0:
                        steps[kind].setdefault(part, Series()).samples.append(sample)
            gc.collect()
    finally:
        if enabled:
            gc.enable()
    return steps


def summarise(steps: Steps) -> dict[str, Any]:
    """Times of all parts, and what is added to a dense step, both for the results file."""
    return {
        "times": {
            kind: {part: series.summary() for part, series in parts.items()}
            for kind, parts in steps.items()
        },
        "added": {clock: added(steps, clock) for clock in ("wall", "cpu")},
    }


def added(steps: Steps, clock: Clock) -> dict[str, dict[str, float]]:
    """Time relative to the dense step of the same round: median and quartiles over the rounds.

    A refresh is all that ``ctl.step()`` does; at every 40th step: a fortieth of such a call and 39
    fortieths of one without a refresh. Of the approximation the exact masks that its gap is
    measured against are left out; how long those take is known on the wall clock only.
    """
    dense = steps["dense"]["step"].of(clock)
    resting = steps["none"]["controller"].of(clock)

    def relative(seconds: Sequence[float]) -> dict[str, float]:
        shares = [part / whole for part, whole in zip(seconds, dense, strict=True)]
        low, median, high = statistics.quantiles(shares, n=4, method="inclusive")
        return {"median": median, "low": low, "high": high}

    def spread_out(refreshing: Sequence[float]) -> list[float]:
        pairs = zip(refreshing, resting, strict=True)
        return [(once + (PERIOD - 1) * others) / PERIOD for once, others in pairs]

    exact = steps["exact"]["controller"].of(clock)
    result = {
        "gradient term": relative(steps["none"]["term"].of(clock)),
        "resting": relative(resting),
        "exact, every step": relative(exact),
        f"exact, every {PERIOD}": relative(spread_out(exact)),
    }
    if clock == "wall":
        masks = steps[APPROXIMATION]["masks"].of("wall")
        whole = [a + b for a, b in zip(masks, resting, strict=True)]
        result["2-approximation, every step"] = relative(whole)
        result[f"2-approximation, every {PERIOD}"] = relative(spread_out(whole))
    return result


def judge(workloads: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """Every target with its value and whether it is met; a quick run is not judged."""
    return [
        {
            "workload": name,
            "pattern": pattern,
            "target": target,
            "value": parts["added"]["wall"][target]["median"],
            "limit": limit,
            "judged": not quick,
            "met": parts["added"]["wall"][target]["median"] <= limit,
        }
        for name, entry in workloads.items()
        for pattern, parts in entry["patterns"].items()
        for target, limit in LIMITS.items()
    ]


def _kinds(dense: Trainer, sparse: SparseTrainer) -> dict[str, Callable[[], dict[str, Sample]]]:
    def under(ending: str) -> Callable[[], dict[str, Sample]]:
        return lambda: sparse.sparse_step(ending)

    return {"dense": dense.dense_step, **{name: under(name) for name in ENDINGS}}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.refresh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--workloads", default=",".join(NAMES), help="some of " + ", ".join(NAMES))
    parser.add_argument("--patterns", default=PATTERNS, help=f"default {PATTERNS}")
    parser.add_argument("--rounds", type=int, help=f"rounds (3 with --quick; else {ROUNDS})")
    parser.add_argument("--threads", type=int, default=min(2, machine.usable_cores()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file")
    parser.add_argument("--from-json", type=Path, help="measure nothing, render these figures")
    parser.add_argument("--strict", action="store_true", help="exit status 3 on a missed target")
    options = parser.parse_args(arguments)
    options.workloads = options.workloads.split(",")
    for name in options.workloads:
        if name not in NAMES:
            parser.error(f"--workloads: {name!r} is none of {', '.join(NAMES)}")
    try:
        options.patterns = [_pattern(text) for text in options.patterns.split(",")]
    except PatternError as error:
        parser.error(f"--patterns: {error}")
    if options.rounds is None and options.quick:
        options.rounds = 3
    if options.rounds is not None and options.rounds < 2:
        parser.error(f"--rounds: received {options.rounds}; quartiles need at least 2")
    if options.threads < 1:
        parser.error(f"--threads: received {options.threads}; at least 1")
    return options


def _pattern(text: str) -> Pattern:
    return Pattern.parse(text if text.endswith("T") else f"{text}T")


if __name__ == "__main__":
    sys.exit(main())
