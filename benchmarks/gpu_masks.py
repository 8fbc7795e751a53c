"""Exact masks on a GPU: ``python -m benchmarks.gpu_masks``.

Gate first; then our solver with and without a proof beside our greedy and 2-approximation with
their repairs, Dykstra's projections, enumeration by a matrix product, torch's own tile pruner and
our CPU solver, interleaved and timed by CUDA events; and what a refresh of all linear layers costs
beside a training step of a large model.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import machine
from benchmarks.families import HOSTILE
from benchmarks.gate import TOLERANCE, GateError
from benchmarks.gpu_model import SMALL, Shape, Step
from benchmarks.harness import Contender, Sample, interleave, ratio, timed
from benchmarks.inputs import as_matrix, as_tiles
from benchmarks.peers.torch_dykstra import TorchDykstra
from transposable import Greedy, Pattern, Solver, TwoApprox, certify, fill_mask, find_mask, solve
from transposable.kernels import exact
from transposable.kernels.bound import dual_bound
from transposable.solvers.exhaustive import all_masks

PATTERNS: Final = ("2:4T", "4:8T", "8:16T", "16:32T")
REFRESHED: Final = ("2:4T", "4:8T")
LIMIT_MS: Final = {"4:8T": 10.0, "8:16T": 10.0}
FULL_SIZE: Final = 8192
LIMIT_SHARE: Final = 0.01
EXIT_GATE, EXIT_NO_GPU = 1, 4
OURS, PROVED, CPU = "exact", "exact, with proof", "exact, CPU of this machine"
WAVE, WAVE_PROVED = "exact, by the wave", "exact, by the wave, with proof"
"""4 x 4 tiles solved as the larger ones; by default all of their masks are compared."""
APPROXIMATE: Final[dict[str, Solver]] = {
    "greedy": Greedy(),
    "2-approximation, repaired": TwoApprox(repair=True),
}
ENUMERATED, DYKSTRA, TILE = "90 masks by matmul", "Dykstra + rounding", "torch tile pruner"


def main(arguments: Sequence[str] | None = None, device: str = "cuda") -> int:
    """Run the command.

    Args:
        device: "cuda"; a test runs all of it on "cpu".

    Returns:
        0; 1 if the gate fails; 4 without a GPU.
    """
    options = _parse(arguments)
    if device == "cuda" and not torch.cuda.is_available():
        print("gpu_masks: torch sees no CUDA device, so nothing is measured", file=sys.stderr)
        return EXIT_NO_GPU
    where = torch.device(device)
    try:
        results = {
            "machine": describe(where),
            "size": options.size,
            "rounds": options.rounds,
            "gate": gate(where, options.patterns),
            "patterns": {p: measure(where, p, options) for p in options.patterns},
            "refresh": refresh(where, options),
        }
    except GateError as error:
        print(f"correctness gate failed, so no time is reported\n{error}", file=sys.stderr)
        return EXIT_GATE
    judged = device == "cuda" and not options.quick and options.size == FULL_SIZE
    results["targets"] = targets(results, judged=judged)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(table(results)))
    return 0


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, and for a GPU its name, driver and libraries."""
    about = machine.describe()
    for package in ("triton", "nvidia-cusparselt-cu13", "nvidia-cusparselt-cu12"):
        try:
            about[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            about[package] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about["gpu"] = properties.name
        about["capability"] = f"{properties.major}.{properties.minor}"
        about["cuda"] = torch.version.cuda
        about["driver"] = _driver()
    return about


def gate(device: torch.device, patterns: Sequence[str]) -> dict[str, Any]:
    """Hostile families and Gaussian tiles: certified, and worth as much as the CPU's masks.

    Both ways of 2:4T are; approximate masks are those of the CPU, entry for entry.

    Raises:
        GateError: at the first mask that is not.
    """
    tiles = 0
    for text in patterns:
        m = Pattern.parse(text).m
        generator = torch.Generator().manual_seed(1)
        made = [make(8, m, m, generator) for make in HOSTILE.values()]
        # Kernels are compiled for each dtype, which takes longer than all else here.
        for dtype in (torch.bfloat16, torch.float32)[: 2 if text == "4:8T" else 1]:
            matrix = as_matrix(torch.cat(made).to(dtype), 8).abs()
            there = matrix.to(device)
            best = solve(matrix, text).objective
            for ways in (contextlib.nullcontext, by_the_wave)[: 2 if m == 4 else 1]:
                with ways():
                    tiles += _gate_exact(there, text, best)
        # In bfloat16 as they are timed; another dtype would be compiled for nothing else.
        matrix = as_matrix(torch.cat(made).bfloat16(), 8)
        for name, solver in APPROXIMATE.items():
            found = find_mask(matrix.to(device), text, solver=solver)
            if found != find_mask(matrix, text, solver=solver):
                raise GateError(f"{text}, {name}: another mask than that of the CPU")
    return {"tiles": tiles, "families": len(HOSTILE)}


def _gate_exact(there: torch.Tensor, text: str, best: float) -> int:
    """The number of tiles proved."""
    solution = solve(there, text, throw=False)
    proof = certify(there, solution.mask, solution.potentials)
    found = torch.empty_like(there, dtype=torch.bool)
    nans = int(fill_mask(found, there, text))
    kept = torch.where(found, there, 0).sum(dtype=torch.float64).item()
    near = 1e-6 * best
    if nans or not proof or abs(solution.objective - best) > near or abs(kept - best) > near:
        raise GateError(f"{text}, {there.dtype}: {proof}; {kept} kept, the CPU keeps {best}")
    return proof.tiles


@contextlib.contextmanager
def by_the_wave() -> Iterator[None]:
    """4 x 4 tiles on a GPU as the larger ones, without comparing all masks."""
    usual = exact.SCHEDULES[4]
    exact.SCHEDULES[4] = dataclasses.replace(usual, enumerated=None)
    try:
        yield
    finally:
        exact.SCHEDULES[4] = usual


def measure(device: torch.device, text: str, options: argparse.Namespace) -> dict[str, Any]:
    """All contenders of one pattern on one bfloat16 Gaussian matrix."""
    pattern = Pattern.parse(text)
    generator = torch.Generator().manual_seed(0)
    host = torch.randn(options.size, options.size, generator=generator).bfloat16()
    weight = host.to(device)
    scores = weight.abs()
    out = torch.empty_like(weight, dtype=torch.bool)
    calls: dict[str, Callable[[], object]] = {
        OURS: lambda: fill_mask(out, weight, pattern),
        PROVED: lambda: proved(scores, pattern),
    }
    calls |= {
        name: functools.partial(fill_mask, out, weight, pattern, solver=solver)
        for name, solver in APPROXIMATE.items()
    }
    skipped = {}
    if pattern.m == 4 and device.type == "cuda":
        calls[WAVE] = by_the_wave()(calls[OURS])
        calls[WAVE_PROVED] = by_the_wave()(calls[PROVED])
    elif pattern.m == 4:
        skipped[WAVE] = "no GPU"
    if text == "2:4T":
        calls[ENUMERATED] = lambda: by_enumeration(scores)
        reason = _why_no_tile_pruner(device)
        if reason is None:
            calls[TILE] = lambda: torch._sparse_semi_structured_tile(weight)
        else:
            skipped[TILE] = reason
    contenders = [Contender(name, _clock(device, call)) for name, call in calls.items()]
    series = interleave(contenders, options.rounds, warmup=2)
    magnitudes = as_tiles(scores.float(), pattern.m)
    slow = {
        DYKSTRA: _clock(device, lambda: TorchDykstra().run(magnitudes, pattern.n, pattern.m)),
        CPU: timed(lambda: find_mask(host, pattern)),
    }
    series |= interleave([Contender(*item) for item in slow.items()], min(3, options.rounds))
    solution = solve(scores, pattern)
    best = solution.objective
    found = {DYKSTRA: TorchDykstra().run(magnitudes, pattern.n, pattern.m)}
    for name, solver in APPROXIMATE.items():
        found[name] = as_tiles(find_mask(weight, pattern, solver=solver).tensor, pattern.m)
    if ENUMERATED in calls:
        found[ENUMERATED] = as_tiles(by_enumeration(scores), 4)
    short = {
        name: 1 - torch.where(kept, magnitudes, 0).sum(dtype=torch.float64).item() / best
        for name, kept in found.items()
    }
    return {
        "times": {name: one.summary() for name, one in series.items()},
        "proof over plain": ratio(series[PROVED], series[OURS]),
        "short of the optimum": short,
        "stats": {key: solution.stats.get(key) for key in ("tiles", "paths", "wide")},
        "gap": solution.gap,
        "skipped": skipped,
    }


def proved(scores: torch.Tensor, pattern: Pattern) -> float:
    """A new mask with prices, and the worst gap of a tile by the bound that they give."""
    if scores.is_cpu:
        return float(solve(scores, pattern).stats["worst_tile_gap"])
    matrices, n, m = scores[None], pattern.n, pattern.m
    kept = torch.empty_like(matrices, dtype=torch.bool)
    shape = (1, -(-scores.shape[0] // m), -(-scores.shape[1] // m), m)
    u, v = (torch.zeros(shape, dtype=torch.float64, device=scores.device) for _ in range(2))
    exact.fill(matrices, kept, n, m, False, u, v)
    worst = float(dual_bound(matrices, kept, n, m, False, u, v)[1])
    if not worst <= TOLERANCE:
        raise GateError(f"{pattern}: a tile is proved to {worst:.3g} only")
    return worst


def by_enumeration(scores: torch.Tensor) -> torch.Tensor:
    """The best of the 90 masks of 2:4T for every tile, by a matrix product in float32."""
    masks = all_masks(4, 4, 2, full=True).to(scores.device)
    tiles = as_tiles(scores, 4).reshape(-1, 16).float()
    parts = [masks[(part @ masks.T.float()).argmax(1)] for part in tiles.split(1 << 20)]
    return as_matrix(torch.cat(parts).reshape(-1, 4, 4), scores.shape[1] // 4)


def refresh(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """New masks for all linear layers of the blocks, beside a training step."""
    shape = SMALL if options.quick or device.type == "cpu" else Shape()
    step = Step(shape, device)
    weights = step.model.pruned()
    masks = [torch.empty_like(weight, dtype=torch.bool) for weight in weights]

    def renew(pattern: Pattern) -> None:
        for mask, weight in zip(masks, weights, strict=True):
            fill_mask(mask, weight, pattern)

    calls: dict[str, Callable[[], object]] = {"step": step}
    calls |= {text: functools.partial(renew, Pattern.parse(text)) for text in REFRESHED}
    contenders = [Contender(name, _clock(device, call)) for name, call in calls.items()]
    series = interleave(contenders, max(options.rounds // 2, 3), warmup=2)
    return {
        "parameters": step.parameters,
        "pruned": sum(weight.numel() for weight in weights),
        "tokens": shape.tokens,
        "times": {name: one.summary() for name, one in series.items()},
        "share of a step": {text: ratio(series[text], series["step"]) for text in REFRESHED},
    }


def targets(results: dict[str, Any], *, judged: bool) -> list[dict[str, Any]]:
    """What was aimed at, and what came out; ``met`` is None where the run is too small to tell."""
    rows = []
    for text, limit in LIMIT_MS.items():
        if text in results["patterns"]:
            value = 1000 * results["patterns"][text]["times"][PROVED]["wall_median_s"]
            rows.append({"name": f"{text} with proof, ms", "limit": limit, "value": value})
    for text, share in results["refresh"]["share of a step"].items():
        name = f"refresh of {text} / step"
        rows.append({"name": name, "limit": LIMIT_SHARE, "value": share["median"]})
    return [{**row, "met": row["value"] <= row["limit"] if judged else None} for row in rows]


def table(results: dict[str, Any]) -> list[str]:
    """The results as lines of Markdown."""
    about = results["machine"]
    gpu = about.get("gpu", "no GPU: a rehearsal on the CPU")
    lines = [
        f"One {results['size']} x {results['size']} bfloat16 Gaussian matrix; {gpu}, driver "
        f"{about.get('driver')}, torch {about['torch']}, triton {about['triton']}.",
        "",
        "| pattern | solver | ms | short of the optimum |",
        "| --- | --- | --: | --: |",
    ]
    for text, one in results["patterns"].items():
        for name, times in one["times"].items():
            error = one["short of the optimum"].get(name)
            shown = "0 (proved)" if error is None and name != TILE else f"{error or 0:.4%}"
            shown = "not measured" if name == TILE else shown
            lines.append(f"| {text} | {name} | {1000 * times['wall_median_s']:.3f} | {shown} |")
        for name, reason in one["skipped"].items():
            lines.append(f"| {text} | {name} | skipped: {reason} | |")
    refreshed = results["refresh"]
    lines += [
        "",
        f"A step of {refreshed['parameters']:,} parameters at {refreshed['tokens']:,} tokens takes "
        f"{1000 * refreshed['times']['step']['wall_median_s']:.1f} ms.",
        "",
        "| target | limit | measured | |",
        "| --- | --: | --: | --- |",
    ]
    for row in results["targets"]:
        met = {True: "met", False: "MISSED", None: "not judged: a small run"}[row["met"]]
        lines.append(f"| {row['name']} | {row['limit']:g} | {row['value']:.4g} | {met} |")
    return lines


def _clock(device: torch.device, call: Callable[[], object]) -> Callable[[], Sample]:
    """Time on the device, by events around the call; on the CPU by its clocks."""
    if device.type != "cuda":
        return timed(call)

    def sample() -> Sample:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        result = call()
        end.record()
        end.synchronize()
        del result
        return Sample(start.elapsed_time(end) / 1000, 0.0)

    return sample


def _why_no_tile_pruner(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "no GPU"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major == 8 else f"it is for compute capability 8, this is {major}.{minor}"


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.split()[0] if said.split() else None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_masks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small matrix, model and few rounds")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--size", type=int, help="side of the matrix; default 8192, quick 512")
    parser.add_argument("--rounds", type=int, help="default 20, quick 3")
    parser.add_argument("--patterns", type=lambda text: text.split(","), default=list(PATTERNS))
    options = parser.parse_args(arguments)
    options.size = options.size or (512 if options.quick else FULL_SIZE)
    options.rounds = options.rounds or (3 if options.quick else 20)
    return options


if __name__ == "__main__":
    sys.exit(main())
