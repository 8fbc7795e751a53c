"""Sparse matrix products against the best dense ones: ``python -m benchmarks.matmul``.

Gate first; then the products of N:M transposable weights and F.linear, oneDNN and OpenBLAS,
interleaved in one process for each number of threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, matmul_tables, matmul_worker
from benchmarks.gate import GateError
from benchmarks.matmul_cases import LEAST_ROUNDS, MOST_ROUNDS, Job
from benchmarks.matmul_gate import MatmulGate
from benchmarks.matmul_targets import judge
from benchmarks.options import transposable_pattern, write
from benchmarks.tables import MarkerError
from transposable import PatternError

SHAPES: Final = "384x1536,1536x384,768x3072,1024x4096,4096x4096"
TOKENS: Final = "64,256,1024,4096"
PATTERNS: Final = "2:4,4:8,8:16,2:8,1:4"
BUDGET_S: Final = 1100.0
EXTRA_SHARE: Final = 0.06
"""Of the budget, for a section on one shape."""
EXIT_GATE, EXIT_WORKER, EXIT_TARGET, EXIT_MARKERS = 1, 2, 3, 4


def main(
    arguments: Sequence[str] | None = None,
    run: Callable[[Job], dict[str, Any]] = matmul_worker.run,
) -> int:
    """Run the command.

    Args:
        run: what measures a job; a test gives one with a broken product.

    Returns:
        0; 1 if the gate fails; 2 if a measuring process dies; 3 if --strict and a target is
        missed; 4 if the Markdown file has no markers.
    """
    options = _parse(arguments)
    try:
        if options.from_json is not None:
            results = json.loads(options.from_json.read_text())
        else:
            results = measure(options, run)
    except GateError as error:
        print(f"correctness gate failed, so no speed is reported\n{error}", file=sys.stderr)
        return EXIT_GATE
    except matmul_worker.WorkerError as error:
        print(error, file=sys.stderr)
        return EXIT_WORKER
    if options.json is not None:
        write(options.json, json.dumps(results, indent=1) + "\n")
    matmul_tables.show(results, details=options.details)
    if options.markdown is not None:
        try:
            write(options.markdown, matmul_tables.into_markdown(options.markdown, results))
        except MarkerError as error:
            print(error, file=sys.stderr)
            return EXIT_MARKERS
    if options.plot is not None:
        from benchmarks import matmul_plot  # matplotlib, only when asked for

        matmul_plot.draw(results, options.plot)
    missed = [row for row in results["targets"] if row["judged"] and not row["met"]]
    return EXIT_TARGET if options.strict and missed else 0


def measure(options: argparse.Namespace, run: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
    """All sections; the results as they go into the JSON file.

    Raises:
        GateError: before anything of that section's layer and batch is timed.
    """
    started = time.perf_counter()
    report = MatmulGate()
    sections = []
    for job in jobs(options):
        seconds = time.perf_counter() - started
        print(f"[{seconds:5.0f} s] {job.title}", file=sys.stderr, flush=True)
        section = run(job)
        report.add(section["gate"])
        sections.append(section)
    results: dict[str, Any] = {
        "benchmark": "matmul",
        "quick": options.quick,
        "seed": options.seed,
        "machine": machine.describe(),
        "gate": {"summary": str(report), **report.as_dict()},
        "sections": sections,
        "skipped": [*_too_few_cores(options), *_skipped(sections)],
        "seconds": time.perf_counter() - started,
    }
    results["targets"] = judge(results)
    return results


def jobs(options: argparse.Namespace) -> list[Job]:
    """The sections, with their shares of the budget: half the threads, twice the time."""
    threads = [count for count in options.threads if count <= machine.usable_cores()]
    extras = options.bf16 + options.avx2
    whole = options.budget_seconds * (1 - EXTRA_SHARE * extras)
    parts = sum(1 / count for count in threads)
    common: dict[str, Any] = {
        "tokens": options.tokens,
        "patterns": [str(pattern) for pattern in options.patterns],
        "seed": options.seed,
        "rounds": (3, 3) if options.quick else (LEAST_ROUNDS, MOST_ROUNDS),
    }
    found = [
        Job(
            f"float32, {count} thread{'s' if count > 1 else ''}",
            count,
            options.shapes,
            budget_s=whole / count / parts,
            **common,
        )
        for count in threads
    ]
    shape = (1024, 4096)
    one = {
        **common,
        "shapes": [shape if shape in options.shapes else options.shapes[0]],
        "threads": 1,
        "budget_s": options.budget_seconds * EXTRA_SHARE,
    }
    if options.bf16:
        found.append(Job("bfloat16, 1 thread", dtype="bfloat16", **one))
    if options.avx2:
        found.append(Job("float32, AVX2 path, 1 thread", isa="avx2", **one))
    return found


def _too_few_cores(options: argparse.Namespace) -> list[str]:
    cores = machine.usable_cores()
    return [
        f"skipped: {count} threads: this process may use {cores} core{'s' if cores > 1 else ''}"
        for count in options.threads
        if count > cores
    ]


def _skipped(sections: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"skipped: {section['title']}: {s}" for section in sections for s in section["skipped"]
    ]
    for section in sections:
        if section["isa"] not in (None, section["isa_taken"]):
            lines.append(
                f"skipped: {section['title']}: the native core took {section['isa_taken']!r} "
                f"instead of {section['isa']!r}, and is not judged for it"
            )
    return lines


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.matmul", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--shapes", help=f"in x out, default {SHAPES}")
    parser.add_argument("--tokens", help=f"default {TOKENS}")
    parser.add_argument("--patterns", default=PATTERNS, help=f"default {PATTERNS}")
    parser.add_argument("--threads", help="default 1,2")
    parser.add_argument(
        "--budget-seconds",
        type=float,
        default=BUDGET_S,
        help=f"time for all rounds, default {BUDGET_S:.0f}; the fewest rounds are always taken",
    )
    parser.add_argument("--bf16", action="store_true", help="also bfloat16, on one shape")
    parser.add_argument("--avx2", action="store_true", help="also the AVX2 path, on one shape")
    parser.add_argument("--details", action="store_true", help="print the time of every product")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="put the tables between this file's markers")
    parser.add_argument("--plot", type=Path, help="write the picture here (PNG, needs matplotlib)")
    parser.add_argument("--from-json", type=Path, help="measure nothing, show these results")
    parser.add_argument("--strict", action="store_true", help="exit 3 if a target is missed")
    options = parser.parse_args(arguments)
    quick = options.quick
    texts = {
        "shapes": options.shapes or ("48x96" if quick else SHAPES),
        "tokens": options.tokens or ("16" if quick else TOKENS),
        "threads": options.threads or ("1" if quick else "1,2"),
    }
    try:
        options.patterns = [transposable_pattern(text) for text in options.patterns.split(",")]
    except PatternError as error:
        parser.error(f"--patterns: {error}")
    try:
        options.tokens = [_positive(text) for text in texts["tokens"].split(",")]
        options.threads = [_positive(text) for text in texts["threads"].split(",")]
        options.shapes = [_shape(text) for text in texts["shapes"].split(",")]
    except ValueError as error:
        parser.error(f"{error}; --shapes takes 384x1536,..., --tokens and --threads numbers from 1")
    if options.budget_seconds <= 0:
        parser.error(f"--budget-seconds: received {options.budget_seconds}; it must be above 0")
    if min(options.threads) > machine.usable_cores():
        parser.error(f"--threads: this process may use {machine.usable_cores()} core(s) only")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"received {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, int]:
    cols, separator, rows = text.partition("x")
    if not separator:
        raise ValueError(f"received {text!r}")
    return _positive(cols), _positive(rows)


if __name__ == "__main__":
    sys.exit(main())
