"""Weights that FSDP cuts over ranks: the part of this process, and what all ranks agree on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transposable.errors import ScoresError, ShardingError, TransposableError
from transposable.layout import Layout

if TYPE_CHECKING:
    from transposable.nn.layer import SparseLayer


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process may hold a part only."""
    # DTensor is not imported for this: a program without one has not paid for it. And a symbolic
    # tracer's stand-in for a tensor has every attribute.
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "_local_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds, sharing its memory: all unless a DTensor."""
    if not is_sharded(tensor):
        return tensor.detach()
    part: torch.Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor on every rank; for a DTensor all ranks must call it together."""
    if not is_sharded(tensor):
        return tensor.detach()
    full: torch.Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return full


def cut_like(full: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A tensor that every rank has whole, cut as a weight is; itself unless that is a DTensor."""
    if not is_sharded(weight):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(weight, DTensor)
    # src_data_rank=None: each rank cuts its own copy, without communication.
    return distribute_tensor(full, weight.device_mesh, weight.placements, src_data_rank=None)


def local_part(mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The part of a whole mask that belongs to the local part of a weight: a view of it.

    A copy where a weight is offloaded to the CPU. The cut is DTensor's: each rank has as many rows,
    rounded up, and the last ones what is left. Recipes ask for it at every step, and this takes a
    quarter of the time of :func:`cut_like`.
    """
    if not is_sharded(weight):
        return mask
    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    for mesh_dim, placement in enumerate(placements):
        if placement.is_shard():
            size = mask.shape[placement.dim]
            rows = -(-size // mesh.shape[mesh_dim])
            start = min(mesh.get_local_rank(mesh_dim) * rows, size)
            mask = mask.narrow(placement.dim, start, min(rows, size - start))
    return mask.to(local(weight).device)


def gather_mask(part: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The whole mask on every rank, of the masks of the local parts of a weight."""
    if not is_sharded(weight):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(weight, DTensor)
    cut = DTensor.from_local(
        part.to(weight.device_mesh.device_type, torch.uint8),  # not every group moves bool
        weight.device_mesh,
        weight.placements,
        shape=weight.shape,
        stride=weight.stride(),
    )
    return whole(cut).bool()


def local_layout(layer: SparseLayer) -> Layout:
    """The layout of the local part of a layer's weight: a convolution's shard has fewer groups."""
    layout = layer.layout
    if layout.groups == 1 or not is_sharded(layer.weight):
        return layout
    per_group = layer.weight.shape[0] // layout.groups
    return Layout(layout.name, max(local(layer.weight).shape[0] // per_group, 1))


def has_shards(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to the model or to anything in it."""
    return next(_fsdp_modules(model), None) is not None


def reshard(model: nn.Module) -> None:
    """Let the modules of a model show their own shards where FSDP left gathered weights.

    After a forward pass without a backward pass the root module still shows copies of its weights:
    a change of these would be lost, and they are not what the optimizer steps.
    """
    for module in _fsdp_modules(model):
        module.reshard()


def check_all_reduced(model: nn.Module, operation: str) -> None:
    """Raise ShardingError while FSDP keeps gradients that it has not reduced yet to itself."""
    for module in _fsdp_modules(model):
        for group in module._get_fsdp_state()._fsdp_param_groups:
            for parameter in group.fsdp_params:
                whole_one = getattr(parameter, "_unsharded_param", None)
                pending = None if whole_one is None else whole_one.grad
                if pending is not None or parameter.unsharded_accumulated_grad is not None:
                    raise ShardingError(
                        f"{operation}: FSDP holds gradients that it has not reduced "
                        "(set_requires_gradient_sync(False)), which no parameter shows and no "
                        "checkpoint can hold; save after a backward pass with gradient sync, or "
                        "pass gradients=False when they may be lost"
                    )


def check_shards(layers: Mapping[str, SparseLayer]) -> None:
    """Raise ShardingError when a weight is cut over ranks elsewhere than between tiles."""
    for name, layer in layers.items():
        weight: Any = layer.weight
        if not is_sharded(weight):
            continue
        cut: set[int] = set()
        for placement, ranks in zip(weight.placements, weight.device_mesh.shape, strict=True):
            if ranks == 1 or placement.is_replicate():
                continue
            if not placement.is_shard() or placement.dim in cut:
                raise ShardingError(
                    f"masks of a sharded model: layer {name!r} has a weight with placements "
                    f"{weight.placements}; a dimension may be cut once: shard it over one "
                    f"dimension of the mesh, or leave it dense with exclude={name!r}"
                )
            cut.add(placement.dim)
            _check_cut(name, layer, placement.dim, weight.shape[placement.dim], ranks)


def _check_cut(name: str, layer: SparseLayer, dim: int, size: int, ranks: int) -> None:
    rows = -(-size // ranks)
    if rows >= size:  # one rank has all
        return
    pattern = layer.pattern
    # The axis of groups for the forward pass is `in`; a transposable pattern has groups along both.
    along_in = dim == (0 if layer.stored_in_out else 1)
    along_out = dim == (1 if layer.stored_in_out else 0)
    bound = along_in or (along_out and pattern.structure != "row")
    in_group = layer.weight.shape[0] // layer.layout.groups
    in_groups = layer.layout.groups > 1 and dim == 0
    problem = None
    if pattern.structure == "unstructured":
        problem = "an unstructured pattern compares all weights of a layer"
    elif in_groups and rows % in_group == 0:
        pass  # whole groups, and tiles lie inside of groups
    elif in_groups and in_group % rows:
        problem = (
            f"a shard of {rows} output channels cuts through the groups of {in_group} of the "
            "convolution"
        )
    elif bound and rows % pattern.m:
        problem = f"a shard of {rows} is no multiple of M = {pattern.m}"
    if problem is not None:
        raise ShardingError(
            f"masks of a sharded model: layer {name!r} with pattern {pattern} has dimension {dim} "
            f"of size {size} cut over {ranks} ranks, and {problem}; use a number of ranks that "
            f"cuts it into multiples of {pattern.m}, shard another dimension (shard_placement_fn "
            f"of fully_shard), or leave the layer dense with exclude={name!r}"
        )


def agree(layers: Mapping[str, SparseLayer]) -> None:
    """Make masks and scales the same on all ranks.

    fully_shard takes from each rank its part of the weights that this rank has. Where ranks have
    initialised them differently, each is right about its own part only: the masks of the parts,
    put together, are those of the weight put together.
    """
    with torch.no_grad():
        for layer in layers.values():
            weight = layer.weight
            if not is_sharded(weight):
                continue
            layer.mask.copy_(gather_mask(local_part(layer.mask, weight), weight))
            if not layer.scale:  # not set yet; 0 on all ranks or on none
                continue
            scales = [each for group in _groups(weight) for each in _gather(layer.scale, *group)]
            # Where any two differ, every rank sees one that is not its own.
            if any(bool(scale != layer.scale) for scale in scales):
                layer.scale.copy_(layer.best_scale())


def add_up(
    layers: Mapping[str, SparseLayer],
    sums: torch.Tensor,
    failure: tuple[str, TransposableError] | None = None,
) -> torch.Tensor:
    """Sums over the parts of the layers, from sums over the parts of this process.

    Equal to the last bit on all ranks. If any rank failed, all raise: one that goes on alone would
    wait for the others for ever.

    Args:
        layers: with one weight each, the same on all ranks.
        sums: float64 [layers, ...], a row for each layer.
        failure: the layer that this rank failed at, and the error.

    Raises:
        TransposableError: the error of this rank.
        ScoresError: if another rank failed.
    """
    names = list(layers)
    rows: dict[Any, list[int]] = {}
    for row, layer in enumerate(layers.values()):
        for group in _groups(layer.weight):
            rows.setdefault(group, []).append(row)
    failed = -1.0 if failure is None else float(names.index(failure[0]))
    sums = sums.clone()
    elsewhere = None
    for group, mine in rows.items():
        message = torch.cat([sums.new_tensor([failed]), sums[mine].flatten()])
        total = torch.zeros_like(sums[mine])
        for rank, part in enumerate(_gather(message, *group)):
            if part[0] >= 0 and elsewhere is None:
                elsewhere = (rank, names[int(part[0])])
            # In the order of the ranks, so that rounding is the same everywhere.
            total += part[1:].view_as(total)
        sums[mine] = total
    if failure is not None:
        raise failure[1]
    if elsewhere is not None:
        rank, name = elsewhere
        raise ScoresError(
            f"mask of layer {name!r}: rank {rank} of its process group found no mask for its part "
            "of the weight, most likely for a NaN; its own message says why, and nothing was "
            "changed on any rank"
        )
    return sums


def _fsdp_modules(model: nn.Module) -> Iterator[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        yield from (module for module in model.modules() if isinstance(module, fsdp.FSDPModule))


def _groups(weight: Any) -> list[tuple[str, Any]]:
    """Where a weight is cut: for each dimension cut, the device type and the process group."""
    if not is_sharded(weight):
        return []
    mesh = weight.device_mesh
    return [
        (mesh.device_type, mesh.get_group(dim))
        for dim, placement in enumerate(weight.placements)
        if placement.is_shard() and mesh.shape[dim] > 1
    ]


def _gather(tensor: torch.Tensor, device_type: str, group: Any) -> list[torch.Tensor]:
    """The tensors of all ranks of a group, on the device of this rank's."""
    import torch.distributed as dist

    on = tensor.to(device_type)
    parts = [torch.empty_like(on) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, on.contiguous(), group=group)
    return [part.to(tensor.device) for part in parts]
