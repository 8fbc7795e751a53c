"""The exact solver's benchmark: ``python -m benchmarks.solve`` (``make bench-solve``).

Gate first, then speed against the prototype, thread scaling, tie-heavy inputs, bf16, the
instruction-set paths, memory and the peers, all interleaved in one run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import machine, parts, tables, targets
from benchmarks.gate import Candidate, GateError, GateReport
from benchmarks.options import transposable_pattern, write
from benchmarks.parts import Run
from benchmarks.prototype import Build, Prototype, Unavailable, start_build
from transposable import PatternError

PATTERNS: Final = "2:4,4:8,8:16,16:32"
PARTS: Final = ("speed", "paths", "memory", "peers")
PROTOTYPE: Final = (
    Path(__file__).resolve().parent.parent.parent / "shared" / "prototypes" / "exact.cpp"
)
EXIT_GATE, EXIT_TARGET, EXIT_MARKERS = 1, 3, 4


def main(arguments: Sequence[str] | None = None, candidate: Candidate | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 if the gate fails; 3 if --strict and a target is missed; 4 if the Markdown file has
        no markers.
    """
    options = _parse(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the peers get one thread, as our rows say theirs
    try:
        if options.from_json is not None:
            results = json.loads(options.from_json.read_text())
        else:
            results = measure(options, candidate or Candidate())
    except GateError as error:
        print(f"correctness gate failed, so no speed is reported\n{error}", file=sys.stderr)
        return EXIT_GATE
    finally:
        torch.set_num_threads(threads)
    if options.json is not None:
        write(options.json, json.dumps(results, indent=1) + "\n")
    tables.show(results)
    if options.markdown is not None:
        try:
            write(options.markdown, tables.into_markdown(options.markdown, results))
        except tables.MarkerError as error:
            print(error, file=sys.stderr)
            return EXIT_MARKERS
    if options.plot is not None:
        from benchmarks import plot  # matplotlib, only when asked for

        plot.draw(results, options.plot)
    missed = [row for row in results["targets"] if row["judged"] and not row["met"]]
    return EXIT_TARGET if options.strict and missed else 0


def measure(options: argparse.Namespace, candidate: Candidate) -> dict[str, Any]:
    """All parts; the results as they go into the JSON file.

    Raises:
        GateError: before anything is timed.
    """
    started = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    run = Run(
        options.size,
        options.seed,
        options.repeats,
        options.peer_repeats,
        options.quick,
        candidate,
        say,
    )
    results: dict[str, Any] = {
        "benchmark": "solve",
        "quick": options.quick,
        "size": options.size,
        "seed": options.seed,
        "repeats": options.repeats,
        "peer_repeats": options.peer_repeats,
        "machine": machine.describe(),
        "patterns": {str(pattern): {} for pattern in options.patterns},
    }
    with _prototype_build(options, run) as build:
        report = GateReport()
        for pattern in options.patterns:
            say(f"gate, {pattern}")
            parts.check(run, pattern, report)
        say(str(report))
        # The compiler worked beside the gate; nothing is timed before it is done.
        prototype = _finish(build, run)
        by_pattern = results["patterns"]
        for pattern in options.patterns:
            if "speed" in options.parts:
                say(f"speed, {pattern}")
                by_pattern[str(pattern)]["speed"] = parts.speed(run, pattern, prototype)
        if "paths" in options.parts:
            say("instruction-set paths")
            for name, part in parts.paths(run, options.patterns).items():
                by_pattern[name]["paths"] = part
        if "memory" in options.parts:
            say("memory")
            for name, part in parts.memory(run, options.patterns).items():
                by_pattern[name]["memory"] = part
        for pattern in options.patterns:
            if "peers" in options.parts:
                say(f"peers, {pattern}")
                by_pattern[str(pattern)]["peers"] = parts.peers(run, pattern)
    results["gate"] = report.as_dict()
    results["skipped"] = run.skipped
    results["targets"] = targets.judge(results)
    results["seconds"] = time.perf_counter() - started
    return results


@contextmanager
def _prototype_build(options: argparse.Namespace, run: Run) -> Iterator[Build | None]:
    with tempfile.TemporaryDirectory() as folder:
        build = None
        if "speed" in options.parts:
            try:
                build = start_build(options.prototype, Path(folder))
            except Unavailable as error:
                run.skip("prototype", error)
        try:
            yield build
        finally:
            if build is not None:
                build.cancel()


def _finish(build: Build | None, run: Run) -> Prototype | None:
    if build is None:
        return None
    try:
        return build.finish()
    except Unavailable as error:
        run.skip("prototype", error)
        return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.solve", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--size", type=int, help="side of the matrix (8192; 1024 with --quick)")
    parser.add_argument("--patterns", default=PATTERNS, help=f"default {PATTERNS}")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--repeats", type=int, help="timed rounds (9; 3 with --quick)")
    parser.add_argument("--peer-repeats", type=int, help="rounds of the peers (3; 1 with --quick)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prototype", type=Path, default=PROTOTYPE, help="C++ source")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="put the tables between this file's markers")
    parser.add_argument("--plot", type=Path, help="write the picture here (PNG, needs matplotlib)")
    parser.add_argument("--from-json", type=Path, help="measure nothing, show these results")
    parser.add_argument("--strict", action="store_true", help="exit 3 if a target is missed")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.size = options.size or (1024 if quick else 8192)
    options.repeats = options.repeats or (3 if quick else 9)
    options.peer_repeats = options.peer_repeats or (1 if quick else 3)
    try:
        options.patterns = [transposable_pattern(text) for text in options.patterns.split(",")]
    except PatternError as error:
        parser.error(str(error))
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: received {', '.join(sorted(unknown))}; it takes {', '.join(PARTS)}")
    if options.repeats < 1 or options.peer_repeats < 1:
        parser.error("--repeats and --peer-repeats must be at least 1")
    for pattern in options.patterns:
        if options.size < pattern.m or options.size % pattern.m:
            parser.error(f"--size: received {options.size}; it must be a multiple of {pattern.m}")
    return options


if __name__ == "__main__":
    sys.exit(main())
