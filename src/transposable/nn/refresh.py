"""New masks for all sparse layers at once, and what changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from transposable.errors import LayerError
from transposable.nn.layer import SparseLayer
from transposable.nn.masks import best_mask
from transposable.nn.sharding import gather_mask, local, local_layout, local_part
from transposable.nn.surgery import sparse_layers
from transposable.pattern import Pattern
from transposable.solvers import Auto, Solver, make_solver


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What :func:`refresh_masks` did: see :class:`transposable.train.Refresh`."""

    flip_rate: float
    kept: float
    gap: float
    seconds: float


def refresh_masks(
    layers: Mapping[str, SparseLayer] | nn.Module, solver: str | Solver = "auto"
) -> Refreshed:
    """Give sparse layers the best masks for their current weights.

    For a model whose weights came without their masks, such as a moving average of weights. All
    masks are found before the first is stored: after an error every layer is as it was.

    Args:
        layers: sparse layers by name, or a model.
        solver: what finds the masks; default the exact one.

    Raises:
        LayerError: if a model has no sparse layer.
        ScoresError: if a weight has a NaN; the message names the layer.

    Example:
        >>> from transposable.nn import SparseLinear
        >>> model = nn.Sequential(SparseLinear(8, 8, pattern="2:4T"))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.eye(8))
        >>> refresh_masks(model).kept
        1.0
    """
    if isinstance(layers, nn.Module):
        layers = _layers_of(layers)
    chosen = make_solver(solver)
    started = time.perf_counter()
    found: dict[int, torch.Tensor] = {}  # layers that share a weight have one mask
    for name, layer in layers.items():
        if id(layer.weight) not in found:
            found[id(layer.weight)] = _find(layer, chosen, name)
    seconds = time.perf_counter() - started
    flips = size = 0
    kept = best = total = 0.0
    for name, layer in layers.items():
        mask = found[id(layer.weight)]
        flips += int((layer.mask != mask).count_nonzero())
        size += mask.numel()
        total += float(local(layer.weight).abs().sum())
        mine = _kept(layer, mask)
        kept += mine
        best += (
            mine if _is_best(chosen, layer.pattern) else _kept(layer, _find(layer, Auto(), name))
        )
    started = time.perf_counter()
    for layer in layers.values():
        layer.mask.copy_(found[id(layer.weight)])
    seconds += time.perf_counter() - started
    return Refreshed(
        flip_rate=flips / max(size, 1),
        kept=kept / total if total > 0 else 1.0,
        gap=max(0.0, 1 - kept / best) if best > 0 else 0.0,
        seconds=seconds,
    )


def _layers_of(model: nn.Module) -> Mapping[str, SparseLayer]:
    layers = sparse_layers(model)
    if not layers:
        raise LayerError(
            f"refresh_masks: {type(model).__name__} has no sparse layer, so there is no mask to "
            "find; call sparsify(model, '2:4T') first"
        )
    for layer in layers.values():
        layer.adopt_code()
    return layers


def _find(layer: SparseLayer, solver: Solver, name: str) -> torch.Tensor:
    """The whole mask, on every rank; each rank solves the part of the weight that it holds."""
    weight = layer.weight
    layout = local_layout(layer)
    mask = best_mask(local(weight), layer.pattern, layout, layer.stored_in_out, solver, name)
    return gather_mask(mask, weight)


def _is_best(solver: Solver, pattern: Pattern) -> bool:
    actual = solver.choose(pattern) if isinstance(solver, Auto) else solver
    return actual.promises_optimal


def _kept(layer: SparseLayer, mask: torch.Tensor) -> float:
    magnitude = local(layer.weight).abs()
    return float(torch.where(local_part(mask, layer.weight), magnitude, 0.0).sum())
