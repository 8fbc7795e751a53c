"""Pre-trained networks pruned in one shot with a little calibration, method by method.

python -m experiments.adaprune.run [--data DIR] [--task NAME] [--config NAME]
"""

from __future__ import annotations

import multiprocessing
import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from experiments import memory
from experiments.adaprune import conversion, tables
from experiments.adaprune.tasks import Task, tasks
from experiments.runs import Run, RunStore
from transposable import verify
from transposable.nn import densify, sparsify
from transposable.prune import (
    ALPS,
    AdaPrune,
    Magnitude,
    Method,
    PublishedAdaPrune,
    SparseGPT,
    Wanda,
    prune_model,
)


@dataclass(frozen=True)
class Config:
    """A method with everything that is set beside it."""

    name: str
    method: Method
    mode: str = "sequential"
    batchnorm: str = "match"
    refit_bias: bool = True


HEADLINE = "AdaPrune"
SAME_PROBLEM = AdaPrune(scores="magnitude", ridge=1e-4)
"""Minimises what the published form minimises, the error on the calibration data, on its masks; the
default keeps away from that minimum where it would overfit."""
CONFIGS = (
    Config("magnitude", Magnitude()),
    Config("Wanda", Wanda()),
    Config("SparseGPT", SparseGPT()),
    Config("SparseGPT, mask by magnitude", SparseGPT(scores="magnitude")),
    Config("SparseGPT, mask by activation", SparseGPT(scores="activation")),
    Config("ALPS", ALPS()),
    Config("AdaPrune as published", PublishedAdaPrune()),
    Config("AdaPrune as published, parallel", PublishedAdaPrune(), mode="parallel"),
    Config(HEADLINE, AdaPrune()),
    Config("AdaPrune, mask by magnitude", AdaPrune(scores="magnitude")),
    Config("AdaPrune, mask by OBS", AdaPrune(scores="obs")),
    Config("AdaPrune, parallel", AdaPrune(), mode="parallel"),
    Config("AdaPrune, to be compared", SAME_PROBLEM, refit_bias=False),
    Config("AdaPrune, to be compared, parallel", SAME_PROBLEM, mode="parallel", refit_bias=False),
    Config("AdaPrune, batch norm kept", AdaPrune(), batchnorm="keep"),
)


def settings_of(pattern: str, config: Config) -> dict[str, Any]:
    """Everything that a run's result depends on, as text."""
    settings: dict[str, Any] = {
        "pattern": pattern,
        "method": repr(config.method),
        "mode": config.mode,
        "batchnorm": config.batchnorm,
    }
    return settings if config.refit_bias else {**settings, "refit_bias": False}


def planned(task: Task, config: Config) -> Run:
    """The run of a task under a configuration."""
    return Run(f"{task.key}: {config.name}", 0, settings_of(task.pattern, config))


def run_one(task: Task, config: Config, threads: int) -> dict[str, Any]:
    """Prune and measure, in a process of its own so that the memory is that of this run."""
    torch.set_num_threads(threads)
    net = task.load()
    calibration = task.calibration()
    before = memory.start()
    started = time.perf_counter()
    report = prune_model(
        net,
        task.pattern,
        config.method,
        calibration,
        mode=config.mode,  # type: ignore[arg-type]
        include=task.include,
        exclude=task.exclude,
        samples=1000,
        batchnorm=config.batchnorm,  # type: ignore[arg-type]
        refit_bias=config.refit_bias,
    )
    seconds = time.perf_counter() - started
    peak = memory.above(before)
    _check(net, task)
    masked = task.load()
    with torch.no_grad():
        for name, mask in report.masks.items():
            masked.get_submodule(name).weight.mul_(mask)
    return {
        "score_masked": round(task.measure(masked), 4),
        "score": round(task.measure(net), 4),
        "error_masked": report.error_masked,
        "error": report.error,
        "magnitude": sum(layer.magnitude for layer in report.layers) / len(report.layers),
        "layers": len(report.layers),
        "samples": report.samples,
        "seconds": round(seconds, 2),
        "peak_mib": None if peak is None else round(peak / 2**20),
        "ridges": [layer.info.get("ridge") for layer in report.layers],
    }


def _check(net: nn.Module, task: Task) -> None:
    """That the weights satisfy the pattern, by the code that verifies masks."""
    for change in sparsify(net, task.pattern, include=task.include, exclude=task.exclude):
        layer: Any = net.get_submodule(change.name)
        if not verify(layer.effective_weight().detach(), task.pattern, layout=layer.layout):
            raise RuntimeError(f"{change.name} does not satisfy {task.pattern}")
        if not torch.equal(layer.effective_weight(), layer.weight):
            raise RuntimeError(f"{change.name}: a weight outside the mask is not zero")
    densify(net)


def _child(data: Path, key: str, config: str, threads: int, out: Any) -> None:
    task = next(task for task in tasks(data) if task.key == key)
    out.put(run_one(task, next(c for c in CONFIGS if c.name == config), threads))


def _in_child(data: Path, key: str, config: str, threads: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=_child, args=(data, key, config, threads, out))
    process.start()
    while True:
        try:
            result: dict[str, Any] = out.get(timeout=1)
            break
        except queue.Empty:
            # It may have ended between the two lines; what it sent is in the queue by then.
            if not process.is_alive() and out.empty():
                raise RuntimeError(
                    f"{key}, {config}: the process ended with {process.exitcode} and no result"
                ) from None
    process.join()
    return result


def dense_run(task: Task, store: RunStore) -> dict[str, Any]:
    """The score of the network before."""
    run = Run(f"{task.key}: dense", 0, {})
    return store.result(run) or store.finish(run, {"score": round(task.measure(task.load()), 4)})


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("../shared/data"),
    show_default=True,
    help="Folder with cifar10/, models/, stsb/ and tinystories/.",
)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default="out/adaprune")
@click.option("--task", "names", multiple=True, help="Only tasks whose name starts so.")
@click.option("--config", "configs", multiple=True, type=click.Choice([c.name for c in CONFIGS]))
@click.option("--threads", default=2, show_default=True)
@click.option("--publish-only", is_flag=True, help="Prune nothing; write what is finished.")
def main(
    data: Path,
    work: Path,
    names: tuple[str, ...],
    configs: tuple[str, ...],
    threads: int,
    publish_only: bool,
) -> None:
    """Prune, measure, and write result.json, figure.png and the tables of README.md."""
    store = RunStore(work)
    every = tasks(data)
    if not publish_only:
        chosen = [task for task in every if not names or task.key.startswith(names)]
        missing = sorted({n for task in chosen for n in task.needed if not (data / n).exists()})
        if missing:
            raise click.ClickException(
                f"adaprune: {', '.join(missing)} not found in {data}; this experiment ships no "
                "data; pass the folder that holds it with --data DIR"
            )
        for task in chosen:
            dense = dense_run(task, store)
            print(f"{task.key:<20} {'dense':<30} {dense['score']:.{task.digits}f}", flush=True)
            for config in CONFIGS:
                if configs and config.name not in configs:
                    continue
                run = planned(task, config)
                result = store.result(run)
                if result is None:
                    found = _in_child(data, task.key, config.name, threads)
                    result = store.finish(run, found)
                print(
                    f"{task.key:<20} {config.name:<30} {result['score_masked']:.{task.digits}f} -> "
                    f"{result['score']:.{task.digits}f}  error {result['error_masked']:.4f} -> "
                    f"{result['error']:.4f}  {result['seconds']:.0f} s  {result['peak_mib']} MiB",
                    flush=True,
                )
        if not names and not configs:
            conversion.run(data, store, threads)
    tables.publish(Path(__file__).parent, store, every, [c.name for c in CONFIGS], HEADLINE)


if __name__ == "__main__":
    main()
