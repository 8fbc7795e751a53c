"""What the GPU benchmarks share: events, interleaved rounds, gates, the machine, the command."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import machine
from benchmarks.gate import GateError
from benchmarks.options import write
from transposable.sparse.semi import probe

SAMPLE: Final = 2e-3
"""Seconds of one sample; shorter calls are repeated."""

EXIT_GATE: Final = 1
EXIT_NO_GPU: Final = 2
EXIT_TARGET: Final = 3


@dataclass(slots=True)
class Budget:
    """How long a benchmark may take; what does not fit is left out, and said.

    Attributes:
        seconds: in all.
        left_out: what was not measured for lack of time.
    """

    seconds: float
    started: float = field(default_factory=time.monotonic)
    left_out: list[str] = field(default_factory=list)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def has_time(self, what: str) -> bool:
        """Whether there is time to begin with something; notes it if not."""
        if self.spent < self.seconds:
            return True
        self.left_out.append(what)
        return False


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, with GPU, driver and the versions of torch, triton and cuSPARSELt."""
    found = machine.describe()
    found["device"] = str(device)
    found["triton"] = _version("triton")
    found["cuda"] = torch.version.cuda
    found["cusparselt"] = probe.cusparselt_version()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "processors": properties.multi_processor_count,
            "gpu_memory_gb": properties.total_memory / 2**30,
            "driver": _driver() or probe.driver_version(),
        }
    return found


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


class Stopwatch:
    """Seconds of calls on a device: CUDA events on a GPU, the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, call: Callable[[], object], repeat: int = 1) -> float:
        """Of one call, the mean of some in a row."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            for _ in range(repeat):
                call()
            return (time.perf_counter() - begun) / repeat
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        first.record()
        for _ in range(repeat):
            call()
        last.record()
        torch.cuda.synchronize(self.device)
        return first.elapsed_time(last) / 1000 / repeat


def interleave(
    contenders: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """One sample of each contender in every round, every other round in reverse order."""
    watch = Stopwatch(device)
    repeats = {}
    for name, call in contenders.items():
        for _ in range(3):
            call()  # tuned, compiled, allocated
        repeats[name] = max(1, min(50, round(SAMPLE / max(watch.seconds(call, 3), 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            names = list(contenders)
            for name in names if number % 2 == 0 else reversed(names):
                times[name].append(watch.seconds(contenders[name], repeats[name]))
    finally:
        if enabled:
            gc.enable()
    return times


def summary(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median milliseconds, and base / contender round by round: median, smallest, largest."""
    rows = {}
    for name, found in times.items():
        ratios = [one / max(other, 1e-12) for one, other in zip(times[base], found, strict=True)]
        rows[name] = {
            "ms": 1000 * statistics.median(found),
            "ms_min": 1000 * min(found),
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            "rounds": len(found),
        }
    return rows


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The length of the difference over the length of what is wanted; NaN stays NaN."""
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def check(what: str, found: torch.Tensor, wanted: torch.Tensor, allowed: float) -> float:
    """The relative error of a result.

    Raises:
        GateError: if it is larger than allowed, or no number.
    """
    if found.shape != wanted.shape:
        raise GateError(f"gate: {what}: {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    error = relative_error(found, wanted)
    if not error <= allowed:  # so that NaN fails too
        raise GateError(f"gate: {what}: relative error {error:.1e}, allowed is {allowed:.0e}")
    return error


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call takes beyond what is held before it; None without a GPU."""
    if device.type != "cuda":
        return None
    call()
    torch.cuda.synchronize(device)
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


Measure = Callable[[argparse.Namespace, Budget], dict[str, Any]]


def run(name: str, doc: str | None, arguments: Sequence[str] | None, measure: Measure) -> int:
    """The command line of a benchmark.

    Returns:
        0; 1 if a gate fails, or is passed by nothing; 2 without a GPU; 3 if --strict and a target
        is missed.
    """
    parser = argparse.ArgumentParser(prog=f"benchmarks.{name}", description=doc)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--device", default="cuda", help="cpu with --quick: the readable twin")
    parser.add_argument("--rounds", type=int, help="timed rounds (15; 3 with --quick)")
    parser.add_argument("--seconds", type=float, default=150.0, help="begin nothing after these")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--strict", action="store_true", help="exit 3 if a target is missed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else 15)
    options.device = torch.device(options.device)
    if options.device.type == "cpu" and not options.quick:
        parser.error("--device cpu is for --quick: it measures the readable twin")
    reason = probe.why_no_gpu(options.device) if options.device.type != "cpu" else None
    if reason is not None:
        print(f"{name}: nothing was measured: {reason}", file=sys.stderr)
        return EXIT_NO_GPU
    warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor.*")
    budget = Budget(options.seconds)
    failure = None
    try:
        results = measure(options, budget)
    except GateError as error:
        failure, results = str(error), {}
    document = {
        "benchmark": name,
        "quick": options.quick,
        "machine": describe(options.device),
        "gate": failure or "passed",
        "left_out": budget.left_out,
        "seconds": budget.spent,
        **results,
    }
    if options.json is not None:
        write(options.json, json.dumps(document, indent=1) + "\n")
    if failure is not None:
        print(f"correctness gate failed, so no speed is reported\n{failure}", file=sys.stderr)
        return EXIT_GATE
    for row in document["targets"]:
        met = "met" if row["met"] else "MISSED"
        print(f"target {row['target']}: {row['value']:.3f}, limit {row['limit']:.2f}: {met}")
    for what in budget.left_out:
        print(f"not measured, for lack of time: {what}")
    missed = [row for row in document["targets"] if not row["met"] and not options.quick]
    return EXIT_TARGET if options.strict and missed else 0


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    """A table of one set of contenders."""
    print(f"\n{title}\n{'':44} {'ms':>9} {'ratio':>7} {'low':>6} {'high':>6}")
    for name, row in rows.items():
        ratios = f"{row['ratio']:7.3f} {row['ratio_low']:6.3f} {row['ratio_high']:6.3f}"
        print(f"{name:44} {row['ms']:9.4f} {ratios}", flush=True)
