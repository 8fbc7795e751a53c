"""Unstructured-sparse networks converted to N:M: what the violated constraints cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.adaprune.tasks import Task, tasks
from experiments.runs import Run, RunStore
from transposable.prune import AdaPrune, prune_model

SPARSITIES = (50, 60, 70, 80)
PATTERNS = ("4:8", "2:4", "4:8T")
NAME = "unstructured"
START, METHOD = AdaPrune(scores="magnitude"), AdaPrune()


def run(data: Path, store: RunStore, threads: int) -> None:
    """One run for each sparsity, with all patterns."""
    task = tasks(data)[0]
    for sparsity in SPARSITIES:
        planned = Run(f"{NAME} {sparsity} %", 0, settings_of(task.name))
        if store.result(planned) is None:
            torch.set_num_threads(threads)
            result = store.finish(planned, convert(task, sparsity))
            print(f"{planned.config}: {result['start']:.2f} before", flush=True)


def settings_of(network: str) -> dict[str, Any]:
    """Everything that a run's result depends on but the sparsity, which is in its name."""
    return {
        "network": network,
        "start": repr(START),
        "patterns": list(PATTERNS),
        "method": repr(METHOD),
    }


def convert(task: Task, sparsity: int) -> dict[str, Any]:
    """A network pruned without structure and fitted to that, then to each pattern."""
    calibration = task.calibration()
    start = task.load()
    options: dict[str, Any] = {"exclude": task.exclude, "samples": 1000}
    prune_model(start, f"{100 - sparsity}%", START, calibration, **options)
    state = {key: value.clone() for key, value in start.state_dict().items()}
    found = []
    for pattern in PATTERNS:
        net = _like(task, state)
        report = prune_model(net, pattern, METHOD, calibration, **options)
        masked = _like(task, state)
        with torch.no_grad():
            for name, mask in report.masks.items():
                masked.get_submodule(name).weight.mul_(mask)
        weights = [layer.mask.numel() for layer in report.layers]
        violated = [layer.violated * n for layer, n in zip(report.layers, weights, strict=True)]
        found.append(
            {
                "pattern": pattern,
                "violated": sum(violated) / sum(weights),
                "masked": round(task.measure(masked), 4),
                "adaprune": round(task.measure(net), 4),
            }
        )
    return {"sparsity": sparsity, "start": round(task.measure(start), 4), "converted": found}


def _like(task: Task, state: dict[str, torch.Tensor]) -> nn.Module:
    net = task.load()
    net.load_state_dict(state)
    return net
