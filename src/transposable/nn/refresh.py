"""New masks for all sparse layers at once, and what changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from transposable.errors import LayerError
from transposable.nn.layer import SparseLayer
from transposable.nn.masks import MaskChange, best_mask, magnitudes, replace_mask
from transposable.nn.sharding import gather_mask, is_sharded, local, local_layout, local_part
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
    # What an approximation is measured against; before any mask is stored.
    best = {
        name: _kept(layer, _find(layer, Auto(), name))
        for name, layer in layers.items()
        if not _is_best(chosen, layer.pattern)
    }
    started = time.perf_counter()
    flips = size = 0
    kept = total = most = 0.0
    for name, layer in layers.items():
        change = _replace(layer, found[id(layer.weight)])
        flips += change.flips
        size += layer.mask.numel()
        kept += change.kept
        total += change.total
        most += best.get(name, change.kept)
    seconds += time.perf_counter() - started
    return Refreshed(
        flip_rate=flips / max(size, 1),
        kept=kept / total if total > 0 else 1.0,
        gap=max(0.0, 1 - kept / most) if most > 0 else 0.0,
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


def _replace(layer: SparseLayer, found: torch.Tensor) -> MaskChange:
    weight = local(layer.weight)
    if not is_sharded(layer.weight):
        return replace_mask(layer.mask, found, weight)
    # Masks are whole on every rank, weights are not.
    flips = int((layer.mask != found).count_nonzero())
    layer.mask.copy_(found)
    return MaskChange(flips, *magnitudes(weight, local_part(found, layer.weight)))


def _kept(layer: SparseLayer, mask: torch.Tensor) -> float:
    kept, _ = magnitudes(local(layer.weight), local_part(mask, layer.weight))
    return kept
