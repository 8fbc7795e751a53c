"""Layer by layer: collect what the calibration says about a layer, prune it, go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from transposable.pattern import Pattern
from transposable.prune.calibration import Call
from transposable.prune.methods.base import Method
from transposable.prune.moments import Moments
from transposable.prune.problem import LayerProblem
from transposable.prune.reading import Reading
from transposable.prune.replay import Trace, run, trace
from transposable.prune.weights import Weights
from transposable.solvers import Solver


@dataclass
class Layer:
    name: str
    module: nn.Module
    pattern: Pattern
    reading: Reading


@dataclass
class Job:
    model: nn.Module
    layers: Mapping[str, Layer]
    calls: Sequence[Call]
    method: Method
    solver: str | Solver
    sequential: bool
    keep_zeros: bool
    weights: Weights
    on_layer: Callable[..., None]


def prune_layers(job: Job) -> None:
    modules = {name: layer.module for name, layer in job.layers.items()}
    traced = trace(job.model, modules, job.calls)
    for number, group in enumerate(traced.groups):
        started = time.perf_counter()
        moments = collect(job, group, traced, first=number == 0)
        collected = time.perf_counter() - started
        for name in group:
            prune_one(job, job.layers[name], moments[name], collected / len(group))


def collect(
    job: Job, group: Sequence[str], traced: Trace, first: bool
) -> dict[str, Moments]:
    watched = {name: job.layers[name].module for name in group}
    device = next(iter(watched.values())).weight.device
    moments = {name: Moments(job.layers[name].reading, device) for name in group}
    own = first or not job.sequential
    for number in range(len(job.calls)):
        count = sum(traced.counts[number].get(name, 0) for name in group)
        if count == 0:
            continue
        wanted: dict[str, list[torch.Tensor]] = {name: [] for name in group}

        def keep(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
            bias = watched[name].bias
            wanted[name].append(y if bias is None else y - _spread(bias, y, job.layers[name]))

        def add(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
            moments[name].add(watched[name], x, None if own else wanted[name].pop(0))

        if own:
            with job.weights.all_dense():
                run(job.model, watched, job.calls, number, add, count)
        else:
            with job.weights.all_dense():
                run(job.model, watched, job.calls, number, keep, count)
            run(job.model, watched, job.calls, number, add, count)
    if own:
        for name in group:
            layer = job.layers[name]
            moments[name].close(layer.reading.matrix(job.weights.dense(layer.module.weight)))
    return moments


def _spread(bias: torch.Tensor, y: torch.Tensor, layer: Layer) -> torch.Tensor:
    if not layer.reading.conv:
        return bias
    space = layer.module.weight.ndim - 2
    return bias.reshape(-1, *[1] * space)


def prune_one(job: Job, layer: Layer, moments: Moments, collected: float) -> None:
    started = time.perf_counter()
    module = layer.module
    weight = job.weights.dense(module.weight)
    matrix = layer.reading.matrix(weight)
    problem = LayerProblem.of(
        layer.name,
        matrix,
        moments,
        layer.pattern,
        job.solver,
        centred=job.method.refits_bias and module.bias is not None,
        keep_zeros=job.keep_zeros,
    )
    result = job.method.prune(problem)
    shape = weight.shape
    job.weights.set(module.weight, layer.reading.weight(result.weight, shape))
    if problem.centred:
        change = problem.bias_change(result.weight)
        job.weights.set(module.bias, job.weights.dense(module.bias) + change)
    job.on_layer(
        layer,
        mask=layer.reading.weight(result.mask, shape),
        before=problem.relative_error(problem.weight * result.mask),
        after=problem.relative_error(result.weight),
        seconds=(collected, time.perf_counter() - started),
        info=result.info,
    )
