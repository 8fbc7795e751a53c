"""Is a layer on its plan ever slower than dense? ``python -m benchmarks.plan_holds``.

Gate first; then every kind of layer of three models, forward pass and training step, on the plan,
dense-masked and plainly dense, in turns in one process. The plan is made in this run.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from benchmarks import machine
from benchmarks.gate import GateError
from benchmarks.options import transposable_pattern, write
from benchmarks.plan_cases import (
    DENSE,
    MASKED,
    PASSES,
    PLAN,
    TWIN,
    calls,
    cases,
    check,
    decided,
)
from benchmarks.tables import print_table

LIMIT: Final = 1.02
"""A layer on its plan takes at most this many times as long as the dense-masked one."""

PATTERNS: Final = "2:4,2:8"
BUDGET_S: Final = 1.5
FEWEST, MOST = 15, 301
SAMPLE_S: Final = 1e-3
EXIT_GATE, EXIT_SLOWER = 1, 3
NOTE: Final = (
    "Time on the plan over that of the other: median of the rounds, and the interval that holds it "
    "with 95 %. sparse: what the plan runs so. noise: the same of a second dense-masked layer. "
    f"Slower: the whole interval lies above {LIMIT} and above that of the noise; unclear: it "
    f"reaches above {LIMIT}."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 if the gate fails; with --strict 3 if a layer is slower than the limit.
    """
    options = _parse(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TRANSPOSABLE_CACHE"] = options.cache or folder
            results = measure(options)
    except GateError as error:
        print(f"correctness gate failed, so no speed is reported\n{error}", file=sys.stderr)
        return EXIT_GATE
    if options.json is not None:
        write(options.json, json.dumps(results, indent=1) + "\n")
    console = Console(width=max(Console().width, 150))
    console.print(machine.sentence(results["machine"]), results["gate"], sep="\n", highlight=False)
    for model in dict.fromkeys(one["model"] for one in results["layers"]):
        print_table(console, f"{model}, {_title(results)}", rows(results, model), sections=True)
    console.print(NOTE, highlight=False)
    console.print(conclusion(results), highlight=False)
    slower = any(one["verdict"] == "slower" for one in results["layers"])
    return EXIT_SLOWER if options.strict and slower else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every kind of layer, pattern and pass; the results as they go into the JSON file.

    Raises:
        GateError: before anything of that layer is timed.
    """
    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    # What else the machine does then counts for nothing; with more threads there is no such clock.
    clock = time.process_time if options.threads == 1 else time.perf_counter
    worst, found = 0.0, []
    for case in cases(options.quick, options.seed):
        for pattern in options.patterns:
            for which in PASSES:
                made = calls(case, which, pattern)
                worst = max(worst, check(case, which, made))
                made[TWIN] = calls(case, which, pattern)[MASKED]
                times = in_turns(made, options.budget_seconds, clock)
                ours, noise = (interval(times[one], times[MASKED]) for one in (PLAN, TWIN))
                found.append(
                    {
                        "model": case.model,
                        "layer": str(case),
                        "times": case.times,
                        "pattern": str(pattern),
                        "pass": which,
                        "sparse": decided(case, which, pattern),
                        "rounds": len(times[PLAN]),
                        "ms": {k: 1e3 * statistics.median(t) for k, t in times.items()},
                        MASKED: ours,
                        TWIN: noise,
                        DENSE: interval(times[PLAN], times[DENSE]),
                        "verdict": verdict(ours, noise),
                    }
                )
                seconds = time.perf_counter() - started
                print(f"[{seconds:5.0f} s] {case}, {pattern}, {which}", file=sys.stderr, flush=True)
    return {
        "benchmark": "plan_holds",
        "quick": options.quick,
        "seed": options.seed,
        "threads": options.threads,
        "machine": machine.describe(),
        "gate": f"gate passed: numbers of the plan differ by {worst:.1e} of the largest at most",
        "layers": found,
        "seconds": time.perf_counter() - started,
    }


def in_turns(
    calls: dict[str, Callable[[], object]], seconds: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of a call of each, a sample a round, in an order that is drawn for every round.

    Short calls are repeated. No sample follows a pause: what one leaves in the caches is a chance
    for any other, and half of the rounds see it the other way round.
    """

    def sample(call: Callable[[], object], repeat: int) -> float:
        begun = clock()
        for _ in range(repeat):
            call()
        return (clock() - begun) / repeat

    shuffle = random.Random(0)
    shortest = min(sample(call, 1) for call in calls.values() for _ in range(2))
    repeat = max(1, min(100, math.ceil(SAMPLE_S / max(shortest, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, rounds, started = list(calls), 0, time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        while rounds < FEWEST or (rounds < MOST and time.perf_counter() - started < seconds):
            shuffle.shuffle(order)
            for name in order:
                times[name].append(sample(calls[name], repeat))
            rounds += 1
    finally:
        gc.enable()
    return times


def interval(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """The median of above / below, round by round, and the 95 % interval of its order statistics.

        ranks  (n + 1) / 2 -+ 1.96 sqrt(n) / 2

    Example:
        >>> interval([1.0] * 20 + [9.0], [1.0] * 21)
        {'median': 1.0, 'low': 1.0, 'high': 1.0}
    """
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    n = len(ratios)
    low = max(math.floor((n - 1) / 2 - 1.96 * math.sqrt(n) / 2), 0)
    return {"median": statistics.median(ratios), "low": ratios[low], "high": ratios[n - 1 - low]}


def verdict(found: dict[str, float], noise: dict[str, float]) -> str:
    """Whether an interval lies above the limit, and above what two equal layers differ by.

    Example:
        >>> one, other = {"low": 1.03, "high": 1.05}, {"low": 0.99, "high": 1.04}
        >>> verdict(one, {"low": 0.99, "high": 1.01}), verdict(one, other)
        ('slower', 'unclear')
    """
    if found["low"] > max(LIMIT, noise["high"]):
        return "slower"
    return "holds" if found["high"] <= LIMIT else "unclear"


def rows(results: dict[str, Any], model: str) -> list[list[str]]:
    """One row for each kind of layer of a model, pattern and pass, under headings."""
    table = [["layer", "", "", "sparse", "ms", "/ dense-masked", "noise", "/ dense", ""]]
    for one in results["layers"]:
        if one["model"] == model:
            table.append(
                [
                    f"{one['times']} of {one['layer'].partition(': ')[2]}",
                    one["pattern"],
                    one["pass"],
                    one["sparse"],
                    f"{one['ms'][PLAN]:.2f}",
                    _interval_text(one[MASKED]),
                    _interval_text(one[TWIN]),
                    _interval_text(one[DENSE]),
                    one["verdict"],
                ]
            )
    return table


def conclusion(results: dict[str, Any]) -> str:
    """The worst layer, and how many are above the limit."""
    layers = results["layers"]
    worst = max(layers, key=lambda one: one[MASKED]["median"])
    verdicts = [one["verdict"] for one in layers]
    return (
        f"worst: {_interval_text(worst[MASKED])} of dense-masked, {worst['pass']} of "
        f"{worst['layer']}, {worst['pattern']}; of {len(layers)} "
        f"{verdicts.count('holds')} hold {LIMIT}, {verdicts.count('unclear')} are unclear, "
        f"{verdicts.count('slower')} are slower"
    )


def _title(results: dict[str, Any]) -> str:
    threads = results["threads"]
    title = "layers on their plan, "
    title += "1 thread, CPU time" if threads == 1 else f"{threads} threads, wall clock"
    return f"{title}; quick: these figures mean nothing" if results["quick"] else title


def _interval_text(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.plan_holds", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models; the figures are void")
    parser.add_argument(
        "--patterns",
        type=lambda text: [transposable_pattern(part) for part in text.split(",")],
        default=PATTERNS,
    )
    parser.add_argument(
        "--budget-seconds", type=float, default=BUDGET_S, help="for the rounds of one line"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", help="use and keep the measurements there; default: none")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strict", action="store_true", help="exit status 3 if a layer is slower")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
