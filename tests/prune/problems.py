"""Layers with calibration data, as problems for the pruning methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from transposable import Pattern, verify
from transposable.prune.methods.base import Pruned
from transposable.prune.moments import Moments
from transposable.prune.problem import LayerProblem
from transposable.prune.reading import Reading


def make_problem(
    layer: nn.Module,
    x: torch.Tensor,
    pattern: str = "2:4T",
    *,
    wanted: torch.Tensor | None = None,
    centred: bool = False,
    keep_zeros: bool = False,
) -> LayerProblem:
    """The problem of a layer on inputs; ``wanted`` are outputs less bias, by default its own."""
    reading = Reading.of(layer)
    with torch.no_grad():
        output = layer(x)
        if layer.bias is not None:
            output = output - layer.bias.reshape(
                -1, *[1] * (output.ndim - 2 if reading.conv else 0)
            )
        moments = Moments(reading, x.device)
        moments.add(layer, x, wanted)
        if wanted is None:
            moments.close(reading.matrix(layer.weight))
    problem = LayerProblem.of(
        "layer",
        reading.matrix(layer.weight.detach()),
        moments,
        Pattern.parse(pattern),
        "auto",
        centred=centred,
        keep_zeros=keep_zeros,
    )
    problem.module = layer
    problem.samples = [(x, output if wanted is None else wanted)]
    return problem


def linear(
    out: int, into: int, samples: int, pattern: str = "2:4T", seed: int = 0, **options: Any
) -> LayerProblem:
    """A Linear in double precision on correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(into, out).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return make_problem(layer, correlated(samples, into, draw), pattern, **options)


def correlated(samples: int, into: int, draw: torch.Generator) -> torch.Tensor:
    """Inputs with a decaying spectrum and a mean."""
    mix = torch.randn(into, into, generator=draw, dtype=torch.double)
    strength = torch.arange(1, into + 1, dtype=torch.double).rsqrt()
    latent = torch.randn(samples, into, generator=draw, dtype=torch.double) * strength
    return latent @ mix + 0.3


def assert_holds(problem: LayerProblem, pruned: Pruned) -> None:
    """The pattern on all axes that it promises, and zeros wherever they have to be."""
    tiles = problem.reading.tiles(pruned.mask)
    report = verify(tiles, problem.pattern, layout="stacked")
    assert report.ok, str(report)
    assert pruned.mask.shape == pruned.weight.shape == problem.reading.shape
    assert bool((pruned.weight[~(pruned.mask & problem.allowed)] == 0).all())
    assert bool(pruned.weight.isfinite().all())
