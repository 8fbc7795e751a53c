"""What exact AdaPrune costs for a layer of a 7B model: ``python -m benchmarks.prune_layer``.

One Linear, calibration on synthetic correlated inputs; then a gate: the mask holds its pattern, no
output is worse than under the mask alone, and some outputs are solved again by factorising.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import machine
from benchmarks.gate import GateError
from transposable import Pattern, verify
from transposable.prune.least_squares import solve_supported
from transposable.prune.methods.adaprune import AdaPrune, fit
from transposable.prune.methods.base import Pruned
from transposable.prune.moments import Moments
from transposable.prune.problem import LayerProblem
from transposable.prune.reading import Reading
from transposable.prune.scores import make_scores

SHAPE: Final = (4096, 11008)
QUICK_SHAPE: Final = (64, 3200)
TOKENS: Final = 16384
BATCH: Final = 2048
LIMIT_GIB: Final = 24.0
MISSED: Final = 1e-5
RIDGE: Final = 1e-2
EXIT_GATE, EXIT_TARGET = 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, 1 if the gate fails, 3 if --strict and the memory target is missed."""
    options = _parse(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        results = measure(options)
    except GateError as error:
        print(f"correctness gate failed\n{error}", file=sys.stderr)
        return EXIT_GATE
    finally:
        torch.set_num_threads(threads)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    return EXIT_TARGET if options.strict and results["target"]["met"] is False else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All steps of one layer; the results as they go into the JSON file.

    Raises:
        GateError: if the result is wrong.
    """
    rows, cols = QUICK_SHAPE if options.quick else (options.rows, SHAPE[1])
    draw = torch.Generator().manual_seed(options.seed)
    layer = nn.Linear(cols, rows, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0, cols**-0.5, generator=draw)
    make = inputs(cols, draw)
    times: dict[str, float] = {}
    moments = Moments(Reading.of(layer), torch.device("cpu"))
    for first in range(0, options.tokens, BATCH):
        x = make(min(BATCH, options.tokens - first))
        _timed(times, "gram", partial(moments.add, layer, x, None))
        _say(f"{first + len(x):,} of {options.tokens:,} inputs", times)
    del make, x
    weight = layer.weight.detach()[None]
    _timed(times, "targets", partial(moments.close, weight))
    problem = LayerProblem.of(
        "layer", weight, moments, options.pattern, "auto", centred=False, keep_zeros=False
    )
    method = AdaPrune(ridge=RIDGE)  # choosing one would add a few solutions for 24 outputs
    mask = _timed(times, "mask", lambda: problem.find_mask(make_scores(method.scores)(problem)))
    _say("mask found", times)
    pruned: Pruned = _timed(times, "solve", lambda: fit(problem, mask, RIDGE))
    _say(f"solved: {pruned.info}", times)
    peak = _peak_gib()  # before the gate, whose memory is not the method's
    return {
        "benchmark": "prune_layer",
        "quick": options.quick,
        "seed": options.seed,
        "threads": options.threads,
        "machine": machine.describe(),
        "shape": [rows, cols],
        "pattern": str(options.pattern),
        "tokens": options.tokens,
        "method": method.name,
        "seconds": times,
        "info": pruned.info,
        "error": {
            "mask alone": problem.relative_error(problem.weight * mask),
            "least squares": problem.relative_error(pruned.weight),
        },
        "gate": gate(problem, pruned, RIDGE, options.checked),
        "peak_gib": peak,
        "target": {
            "peak_gib": LIMIT_GIB,
            "met": None if peak is None or (rows, cols) != SHAPE else peak < LIMIT_GIB,
        },
    }


def inputs(cols: int, draw: torch.Generator) -> Callable[[int], torch.Tensor]:
    """Draws inputs whose variances fall off as 1/j in random directions, of uneven power."""
    mix = torch.randn(cols, cols, generator=draw)
    mix *= torch.arange(1, cols + 1).rsqrt().unsqueeze(1)
    mix *= torch.randn(cols, generator=draw).exp()
    return lambda count: torch.randn(count, cols, generator=draw) @ mix


def gate(problem: LayerProblem, pruned: Pruned, ridge: float, checked: int) -> dict[str, Any]:
    """Check the result; what share of the possible some outputs fall short of.

    That is (q - q*) / (q(mask alone) - q*), q being what is minimised, q* of the factorisation.

    Raises:
        GateError: if the pattern or an output is violated.
    """
    report = verify(pruned.mask[0], problem.pattern)
    if not report.ok:
        raise GateError(str(report))
    if bool((pruned.weight[~pruned.mask] != 0).any()):
        raise GateError("a weight outside the mask is other than zero")
    start = problem.weight * pruned.mask
    found = problem.error(pruned.weight)
    if bool((found > problem.error(start)).any()):
        raise GateError("an output is worse than under the mask alone")
    rows = torch.linspace(0, problem.reading.rows - 1, checked).round().long()
    exact, _ = solve_supported(
        problem.gram,
        problem.cross[:, rows],
        pruned.mask[:, rows],
        start[:, rows],
        ridge,
        "cholesky",
    )
    unit = ridge * float(problem.scale)

    def objective(weight: torch.Tensor) -> torch.Tensor:
        value = (weight @ problem.gram * weight).sum(2) - 2 * (weight * problem.cross[:, rows]).sum(
            2
        )
        return value + problem.power[:, rows] + unit * (weight - start[:, rows]).square().sum(2)

    best = objective(exact)
    possible = objective(start[:, rows]) - best
    missed = float(((objective(pruned.weight[:, rows]) - best) / possible).max())
    if missed > MISSED:
        raise GateError(f"an output misses {missed:.1e} of the improvement; at most {MISSED:g}")
    return {"outputs": checked, "missed_share": missed, "limit": MISSED}


def show(results: dict[str, Any]) -> None:
    """Print everything."""
    console = Console(width=110)
    rows, cols = results["shape"]
    console.print(
        f"exact AdaPrune, {rows} x {cols}, {results['pattern']}, {results['tokens']:,} inputs, "
        f"{results['threads']} thread(s)\n{machine.sentence(results['machine'])}",
        highlight=False,
    )
    if results["quick"]:
        console.print("[bold]--quick: shows that it runs; these figures mean nothing[/bold]")
    table = Table(show_header=False)
    for name, value in results["seconds"].items():
        table.add_row(name, f"{value:,.1f} s")
    for name, value in results["error"].items():
        table.add_row(f"relative error, {name}", f"{value:.5f}")
    for name, value in results["info"].items():
        table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    checked = results["gate"]
    table.add_row(
        f"improvement missed, of {checked['outputs']} outputs", f"{checked['missed_share']:.1e}"
    )
    peak = results["peak_gib"]
    table.add_row("peak memory", "not known here" if peak is None else f"{peak:.1f} GiB")
    console.print(table)


def _timed(times: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = call()
    times[name] = times.get(name, 0.0) + time.perf_counter() - started
    return result


def _say(text: str, times: dict[str, float]) -> None:
    print(f"[{sum(times.values()):5.0f} s] {text}", file=sys.stderr, flush=True)


def _peak_gib() -> float | None:
    """Most memory that this process has held, where the system says."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**20


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.prune_layer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small layer, to see that it runs")
    parser.add_argument("--rows", type=int, default=SHAPE[0], help=f"outputs, default {SHAPE[0]}")
    parser.add_argument("--pattern", type=Pattern.parse, default="4:8T", help="default 4:8T")
    parser.add_argument("--tokens", type=int, help=f"inputs (6400 with --quick; else {TOKENS})")
    parser.add_argument("--checked", type=int, default=2, help="outputs solved again, default 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--strict", action="store_true", help="exit status 3 on a missed target")
    options = parser.parse_args(arguments)
    if options.tokens is None:
        options.tokens = 6400 if options.quick else TOKENS
    for name in ("rows", "tokens", "checked", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: received {getattr(options, name)}; at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
