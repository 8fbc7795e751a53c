"""Whole models on sparse matrix products: ``python -m benchmarks.block``.

A training step of a transformer block, and inference with a sentence encoder, each against its
dense form, interleaved; gates first.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from benchmarks import block_inference, block_tables, block_training, machine
from benchmarks.gate import GateError
from benchmarks.options import transposable_pattern, write
from benchmarks.tables import MarkerError
from transposable import Pattern, PatternError
from transposable.nn.backends import Backend

TRAINING_PATTERNS: Final = "2:4,4:8"
INFERENCE_PATTERNS: Final = "4:8,2:8"
PARTS: Final = ("training", "inference")
ROUNDS: Final = 11
TRAINING_LIMIT: Final = 1.3
INFERENCE_LIMITS: Final = {0.5: 1.3, 0.25: 1.8}
EXIT_GATE, EXIT_TARGET, EXIT_MARKERS = 1, 3, 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is measured of the library; a test puts a broken one in its place."""

    backend: Callable[[], Backend] = block_training.native_backend
    compress: Callable[[nn.Module], None] = block_inference.compressed


def main(arguments: Sequence[str] | None = None, candidate: Candidate | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 if a gate fails; 3 if --strict and a target is missed; 4 if the Markdown file has no
        markers.
    """
    options = _parse(arguments)
    try:
        if options.from_json is not None:
            results = json.loads(options.from_json.read_text())
        else:
            results = measure(options, candidate or Candidate())
    except GateError as error:
        print(f"correctness gate failed, so no speed is reported\n{error}", file=sys.stderr)
        return EXIT_GATE
    if options.json is not None:
        write(options.json, json.dumps(results, indent=1) + "\n")
    block_tables.show(results)
    if options.markdown is not None:
        try:
            write(options.markdown, block_tables.into_markdown(options.markdown, results))
        except MarkerError as error:
            print(error, file=sys.stderr)
            return EXIT_MARKERS
    missed = [row for row in results["targets"] if row["judged"] and not row["met"]]
    return EXIT_TARGET if options.strict and missed else 0


def measure(options: argparse.Namespace, candidate: Candidate) -> dict[str, Any]:
    """All parts, patterns and numbers of threads; the results as they go into the JSON file.

    Raises:
        GateError: before anything under that pattern is timed.
    """
    started = time.perf_counter()
    size = block_training.QUICK if options.quick else block_training.Size()
    encoder = None
    if "inference" in options.parts:
        encoder = block_inference.load(options.quick, options.seed)
    training, inference = [], []

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:5.0f} s] {line}", file=sys.stderr, flush=True)

    for count in options.threads:
        with _threads(count):
            for pattern in options.training_patterns if "training" in options.parts else ():
                say(f"training, {pattern}, {count} thread(s)")
                found = block_training.measure(
                    str(pattern), size, options.rounds, options.seed, candidate.backend
                )
                training.append({"threads": count, **found})
            for pattern in options.inference_patterns if encoder is not None else ():
                say(f"inference, {pattern}, {count} thread(s)")
                found = block_inference.measure(
                    str(pattern), encoder, options.rounds, candidate.compress
                )
                inference.append({"threads": count, **found})
    results: dict[str, Any] = {
        "benchmark": "block",
        "quick": options.quick,
        "seed": options.seed,
        "machine": machine.describe(),
        "training": training,
        "inference": inference,
        "skipped": [encoder.note] if encoder is not None and encoder.note else [],
        "seconds": time.perf_counter() - started,
    }
    results["targets"] = judge(results)
    return results


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target with its value and whether it is met; a quick run is not judged."""
    rows = []
    for part in results["training"]:
        for name in block_training.RECIPES:
            value = part["rows"][name]["ratio"]["wall"]["median"]
            rows.append((f"training step, {name}", part, value, TRAINING_LIMIT))
    for part in results["inference"]:
        limit = INFERENCE_LIMITS.get(Pattern.parse(part["pattern"]).density)
        for name, row in part["rows"].items():
            if limit is not None:
                value = row["ratios"]["dense"]["wall"]["median"]
                rows.append((f"inference, {name}", part, value, limit))
    return [
        {
            "target": f"dense / sparse, {target}",
            "pattern": part["pattern"],
            "threads": part["threads"],
            "value": value,
            "limit": limit,
            "met": value >= limit,
            "judged": not results["quick"],
        }
        for target, part, value, limit in rows
    ]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    gc.collect()
    gc.freeze()  # the rounds collect garbage, and need not walk through all of torch for it
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.block", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    for part, default in (("training", TRAINING_PATTERNS), ("inference", INFERENCE_PATTERNS)):
        parser.add_argument(f"--{part}-patterns", default=default, help=f"default {default}")
    parser.add_argument("--rounds", type=int, help=f"timed rounds ({ROUNDS}; 3 with --quick)")
    parser.add_argument("--threads", help="default 1,2 (1 with --quick)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="put the tables between this file's markers")
    parser.add_argument("--from-json", type=Path, help="measure nothing, show these results")
    parser.add_argument("--strict", action="store_true", help="exit 3 if a target is missed")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: received {', '.join(sorted(unknown))}; it takes {', '.join(PARTS)}")
    for name in ("training_patterns", "inference_patterns"):
        try:
            texts = getattr(options, name).split(",")
            setattr(options, name, [transposable_pattern(text) for text in texts])
        except PatternError as error:
            parser.error(f"--{name.replace('_', '-')}: {error}")
    if options.rounds is None:
        options.rounds = 3 if options.quick else ROUNDS
    cores = machine.usable_cores()
    default = "1" if options.quick or cores < 2 else "1,2"
    texts = (options.threads or default).split(",")
    if not all(text.isdecimal() and 1 <= int(text) <= cores for text in texts):
        parser.error(f"--threads: received {options.threads}; numbers from 1 to {cores}")
    options.threads = [int(text) for text in texts]
    if options.rounds < 1:
        parser.error(f"--rounds: received {options.rounds}; at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
