"""Sparse convolutions against the best dense ones: ``python -m benchmarks.conv``.

Gate first; then forward pass and both gradients of N:M transposable kernels and of torch's own
convolution, planes and channels last, and oneDNN in its own format, interleaved in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from benchmarks import machine
from benchmarks.conv_cases import CIFAR, DIRECTIONS, IMAGENET, OURS, PEERS, TINY, Case
from benchmarks.gate import GateError
from benchmarks.harness import Contender, Series, interleave, ratio, timed
from benchmarks.options import transposable_pattern, write
from benchmarks.tables import MarkerError, file_with, markdown_table, print_table
from transposable import PatternError

PATTERNS: Final = "2:4,4:8,2:8"
ROUNDS: Final = 15
BEGIN: Final = "<!-- benchmark:conv -->"
END: Final = "<!-- /benchmark:conv -->"
EXIT_GATE, EXIT_MARKERS = 1, 4


def main(arguments: Sequence[str] | None = None, case: type[Case] = Case) -> int:
    """Run the command.

    Args:
        case: what is measured; a test gives one with a broken product.

    Returns:
        0; 1 if the gate fails; 4 if the Markdown file has no markers.
    """
    options = _parse(arguments)
    try:
        if options.from_json is not None:
            results = json.loads(options.from_json.read_text())
        else:
            results = measure(options, case)
    except GateError as error:
        print(f"correctness gate failed, so no speed is reported\n{error}", file=sys.stderr)
        return EXIT_GATE
    if options.json is not None:
        write(options.json, json.dumps(results, indent=1) + "\n")
    console = Console()
    console.print(machine.sentence(results["machine"]), results["gate"], sep="\n", highlight=False)
    print_table(console, _title(results), rows(results), NOTE, sections=True)
    if options.markdown is not None:
        try:
            write(options.markdown, file_with(options.markdown, BEGIN, END, markdown(results)))
        except MarkerError as error:
            print(error, file=sys.stderr)
            return EXIT_MARKERS
    return 0


def measure(options: argparse.Namespace, case: type[Case] = Case) -> dict[str, Any]:
    """Every layer, pattern and direction; the results as they go into the JSON file.

    Raises:
        GateError: before anything of that direction is timed.
    """
    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    entries, worst, found = 0, 0.0, []
    for layer in TINY if options.quick else (*CIFAR, *IMAGENET):
        for pattern in options.patterns:
            seconds = time.perf_counter() - started
            print(f"[{seconds:5.0f} s] {layer}, {pattern}", file=sys.stderr, flush=True)
            made = case(layer, pattern, options.seed)
            record: dict[str, Any] = {
                "network": layer.name,
                "layer": str(layer),
                "pattern": str(pattern),
                "multiplications": layer.multiplications,
                "directions": {},
            }
            with torch.no_grad():
                for direction in DIRECTIONS:
                    checked, error = made.check(direction)
                    entries, worst = entries + checked, max(worst, error)
                    contenders = [
                        Contender(name, timed(product))
                        for name, product in made.products(direction).items()
                    ]
                    series = interleave(contenders, options.rounds)
                    record["directions"][direction] = _judged(series)
            found.append(record)
    return {
        "benchmark": "conv",
        "quick": options.quick,
        "seed": options.seed,
        "threads": options.threads,
        "machine": machine.describe(),
        "gate": (
            f"gate passed: {entries:,} entries equal float64's (largest error {worst:.1e} of the "
            "lengths of the factors)"
        ),
        "layers": found,
        "seconds": time.perf_counter() - started,
    }


def _judged(series: dict[str, Series]) -> dict[str, Any]:
    """Medians, and the ratios dense / ours: format by format, and best by best."""
    ours = min(OURS, key=lambda name: series[name].median())
    best = min((name for name in PEERS if name in series), key=lambda name: series[name].median())
    return {
        "series": {name: one.summary() for name, one in series.items()},
        "planes": ratio(series[PEERS[0]], series[OURS[0]]),
        "channels_last": ratio(series[PEERS[1]], series[OURS[1]]),
        "best": {"ours": ours, "peer": best, **ratio(series[best], series[ours])},
    }


NOTE: Final = (
    "Time of dense / time of ours, medians over the rounds: torch's own convolution in planes, and "
    "with channels last; and the fastest of all dense ones (oneDNN in its own format too, without "
    "the conversion) over the faster of ours."
)

_HEADINGS: Final = (
    "layer",
    "pattern",
    *(
        f"{direction}{kind}"
        for direction in ("forward", "dx", "dW")
        for kind in (", planes", ", last", ", best")
    ),
)


def rows(results: dict[str, Any]) -> list[list[str]]:
    """The table, with its headings."""
    found = [list(_HEADINGS)]
    for record in results["layers"]:
        row = [record["layer"], record["pattern"]]
        for direction in DIRECTIONS:
            judged = record["directions"][direction]
            row += [f"{judged[kind]['median']:.2f}" for kind in ("planes", "channels_last", "best")]
        found.append(row)
    return found


def _title(results: dict[str, Any]) -> str:
    threads = results["threads"]
    return f"convolutions, float32, {threads} thread{'s' if threads > 1 else ''}" + (
        " (a quick run: these figures mean nothing)" if results["quick"] else ""
    )


def markdown(results: dict[str, Any]) -> str:
    """The table for the documentation: a row for each layer, its patterns side by side."""
    patterns = list(dict.fromkeys(record["pattern"] for record in results["layers"]))
    table = [["layer", *(f"{name} {p}" for p in patterns for name in ("y", "dx", "dW"))]]
    for layer in dict.fromkeys(record["layer"] for record in results["layers"]):
        row = [layer]
        for pattern in patterns:
            record = next(
                one
                for one in results["layers"]
                if (one["layer"], one["pattern"]) == (layer, pattern)
            )
            row += [f"{record['directions'][d]['best']['median']:.2f}" for d in DIRECTIONS]
        table.append(row)
    over = [
        record["directions"][d]["best"]["median"]
        for record in results["layers"]
        for d in DIRECTIONS
    ]
    threads = results["threads"]
    head = (
        f"Time of the fastest dense convolution / time of ours; float32, {threads} "
        f"thread{'s' if threads > 1 else ''}; {machine.sentence(results['machine'])}."
    )
    if results["quick"]:
        head += " **A quick run: these figures mean nothing.**"
    tail = f"Median of all: {statistics.median(over):.2f}."
    return "\n".join([head, "", *markdown_table(table), "", tail]) + "\n"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.conv", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--patterns", default=PATTERNS, help=f"default {PATTERNS}")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="put the table between this file's markers")
    parser.add_argument("--from-json", type=Path, help="measure nothing, show these results")
    options = parser.parse_args(arguments)
    try:
        options.patterns = [transposable_pattern(text) for text in options.patterns.split(",")]
    except PatternError as error:
        parser.error(f"--patterns: {error}")
    options.rounds = options.rounds or (2 if options.quick else ROUNDS)
    if options.rounds < 1 or not 1 <= options.threads <= machine.usable_cores():
        parser.error(
            f"--rounds, --threads: received {options.rounds} and {options.threads}; at least 1, "
            f"and at most {machine.usable_cores()} threads here"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
