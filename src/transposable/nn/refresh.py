"""New masks for all sparse layers at once, and what changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from transposable.errors import LayerError, TransposableError
from transposable.nn.layer import SparseLayer
from transposable.nn.masks import best_mask, magnitudes, replace_mask
from transposable.nn.sharding import (
    add_up,
    check_shards,
    gather_mask,
    is_sharded,
    local,
    local_layout,
    local_part,
    reshard,
)
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
    masks are found before the first is stored: after an error every layer is as it was. Under FSDP
    all ranks must call it together: each finds the masks of its part of the weights, and what is
    returned, ``seconds`` apart, is the same on all.

    Args:
        layers: sparse layers by name, or a model.
        solver: what finds the masks; default the exact one.

    Raises:
        LayerError: if a model has no sparse layer.
        ScoresError: if a weight has a NaN, on whatever rank; the message names the layer.
        ShardingError: if a weight is cut over ranks inside a tile.

    Example:
        >>> from transposable.nn import SparseLinear
        >>> model = nn.Sequential(SparseLinear(8, 8, pattern="2:4T"))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.eye(8))
        >>> refresh_masks(model).kept
        1.0
    """
    if isinstance(layers, nn.Module):
        reshard(layers)
        layers = _layers_of(layers)
    check_shards(layers)
    chosen = make_solver(solver)
    first: dict[int, str] = {}  # layers that share a weight have one mask
    for name, layer in layers.items():
        first.setdefault(id(layer.weight), name)
    distinct = {name: layers[name] for name in first.values()}
    found: dict[str, torch.Tensor] = {}
    sums = torch.zeros(len(distinct), 5, dtype=torch.float64)  # flips, size, kept, total, best
    failure = None
    seconds = 0.0
    for row, (name, layer) in zip(sums, distinct.items(), strict=True):
        started = time.perf_counter()
        try:
            found[name] = _find(layer, chosen, name)
            seconds += time.perf_counter() - started
            if not _is_best(chosen, layer.pattern):
                # What an approximation is measured against.
                best = _find(layer, Auto(), name)
                row[4] = magnitudes(local(layer.weight), best)[0]
        except TransposableError as error:
            failure = (name, error)
            break
        if is_sharded(layer.weight):
            row[:4] = torch.tensor(_measure(layer, found[name]), dtype=torch.float64)
    # Nothing is stored before all ranks know that none has failed.
    sums = add_up(distinct, sums, failure)
    started = time.perf_counter()
    for row, (name, layer) in zip(sums, distinct.items(), strict=True):
        if is_sharded(layer.weight):
            layer.mask.copy_(gather_mask(found[name], layer.weight))
        else:
            change = replace_mask(layer.mask, found[name], layer.weight)
            row[:4] = torch.tensor(
                (change.flips, layer.mask.numel(), change.kept, change.total), dtype=torch.float64
            )
        if _is_best(chosen, layer.pattern):
            row[4] = row[2]
    for name, layer in layers.items():
        owner = first[id(layer.weight)]
        if owner != name:
            layer.mask.copy_(layers[owner].mask)
    seconds += time.perf_counter() - started
    flips, size, kept, total, most = sums.sum(0).tolist()
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
    """The mask of the part of the weight that this rank holds."""
    layout = local_layout(layer)
    weight = local(layer.weight)
    return best_mask(weight, layer.pattern, layout, layer.stored_in_out, solver, name)


def _measure(layer: SparseLayer, mask: torch.Tensor) -> tuple[float, float, float, float]:
    """Of this rank's part: entries that flip, entries, magnitude kept, magnitude in all."""
    flips = (local_part(layer.mask, layer.weight) != mask).count_nonzero()
    # In double precision: what is left must not depend on how many ranks share the work.
    return float(flips), float(mask.numel()), *magnitudes(local(layer.weight), mask)


def _is_best(solver: Solver, pattern: Pattern) -> bool:
    actual = solver.choose(pattern) if isinstance(solver, Auto) else solver
    return actual.promises_optimal
