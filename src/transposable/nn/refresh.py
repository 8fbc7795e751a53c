"""New masks for all sparse layers at once, and what changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from transposable.errors import LayerError, ScoresError, TransposableError
from transposable.nn.layer import SparseLayer
from transposable.nn.masks import best_mask, best_mask_unseen, changes, compare_masks
from transposable.nn.sharding import (
    add_up,
    check_shards,
    gather_mask,
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
    masks are found before the first is stored: after an error every layer is as it was. Weights on
    a GPU are solved there, and the host waits once, after the last of them. Under FSDP
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
    rows: list[torch.Tensor] = []
    failure = None
    seconds = 0.0
    for name, layer in distinct.items():
        started = time.perf_counter()
        try:
            found[name], nans = _find(layer, chosen, name)
            change = _compare(layer, found[name])
            seconds += time.perf_counter() - started
            most = change[1]
            if not _is_best(chosen, layer.pattern):
                # What an approximation is measured against.
                most = _compare(layer, _find(layer, Auto(), name)[0])[1]
        except TransposableError as error:
            failure = (name, error)
            break
        seen = change.new_zeros(()) if nans is None else nans.to(change.dtype)
        rows.append(torch.cat([change, torch.stack([most, seen])]))
    started = time.perf_counter()
    sums = torch.zeros(len(distinct), 5, dtype=torch.float64)  # flips, size, kept, total, best
    for at, (row, name) in enumerate(zip(_fetch(rows), distinct, strict=False)):
        *change_of, nan_tiles = row
        if nan_tiles and failure is None:
            failure = (name, _error(distinct[name], chosen, name))
        sums[at] = sums.new_tensor([change_of[0], found[name].numel(), *change_of[1:]])
    seconds += time.perf_counter() - started
    # Nothing is stored before all ranks know that none has failed.
    flips, size, kept, total, best = add_up(distinct, sums, failure).sum(0).tolist()
    started = time.perf_counter()
    for name, layer in distinct.items():
        found[name] = gather_mask(found[name], layer.weight)
    for layer in layers.values():
        layer.mask.copy_(found[first[id(layer.weight)]])
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


def _find(
    layer: SparseLayer, solver: Solver, name: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The mask of the part of the weight that this rank holds, and its tiles with a NaN."""
    layout = local_layout(layer)
    weight = local(layer.weight)
    return best_mask_unseen(weight, layer.pattern, layout, layer.stored_in_out, solver, name)


def _error(layer: SparseLayer, solver: Solver, name: str) -> TransposableError:
    """What :func:`best_mask` has to say about a weight with a NaN."""
    weight = local(layer.weight)
    try:
        best_mask(weight, layer.pattern, local_layout(layer), layer.stored_in_out, solver, name)
    except TransposableError as error:
        return error
    return ScoresError(
        f"mask of layer {name!r}: a score was NaN when the masks were found and is none now; do "
        "not change weights while masks are refreshed"
    )


def _fetch(rows: list[torch.Tensor]) -> list[list[float]]:
    """The rows as numbers; waits once for each device."""
    values: dict[int, list[float]] = {}
    for device in dict.fromkeys(row.device for row in rows):
        here = [at for at, row in enumerate(rows) if row.device == device]
        values.update(zip(here, torch.stack([rows[at] for at in here]).tolist(), strict=True))
    return [values[at] for at in range(len(rows))]


def _compare(layer: SparseLayer, mask: torch.Tensor) -> torch.Tensor:
    """What a mask changes of this rank's part: flips, kept and total, [3], where the weight is."""
    weight, before = local(layer.weight), local_part(layer.mask, layer.weight)
    if weight.is_cpu:
        change = compare_masks(weight, before, mask)
        return torch.tensor([change.flips, change.kept, change.total], dtype=torch.float64)
    return changes(weight, before, mask)


def _is_best(solver: Solver, pattern: Pattern) -> bool:
    actual = solver.choose(pattern) if isinstance(solver, Auto) else solver
    return actual.promises_optimal
