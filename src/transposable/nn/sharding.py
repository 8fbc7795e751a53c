"""Weights that FSDP cuts over ranks: the local part, and masks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from transposable.errors import ShardingError
from transposable.layout import Layout

if TYPE_CHECKING:
    from transposable.nn.layer import SparseLayer


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process may hold a part only."""
    # DTensor is not imported for this: a program without one has not paid for it.
    return hasattr(tensor, "_local_tensor") and hasattr(tensor, "placements")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds: all of it unless it is a DTensor."""
    if not is_sharded(tensor):
        return tensor.detach()
    part: torch.Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def local_part(mask: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The part of a whole mask that belongs to the local part of a weight."""
    if not is_sharded(weight):
        return mask
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(weight, DTensor)
    # Every rank has the whole mask: src_data_rank=None cuts it without communication.
    cut = distribute_tensor(mask, weight.device_mesh, weight.placements, src_data_rank=None)
    return cut.to_local()


def gather_mask(part: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The whole mask on every rank, of the masks of the local parts of a weight."""
    if not is_sharded(weight):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(weight, DTensor)
    whole = DTensor.from_local(
        part.to(torch.uint8),  # not every process group moves bool
        weight.device_mesh,
        weight.placements,
        shape=weight.shape,
        stride=weight.stride(),
    )
    return whole.full_tensor().bool()


def local_layout(layer: SparseLayer) -> Layout:
    """The layout of the local part of a layer's weight: a convolution's shard has fewer groups."""
    layout = layer.layout
    if layout.groups == 1 or not is_sharded(layer.weight):
        return layout
    per_group = layer.weight.shape[0] // layout.groups
    return Layout(layout.name, max(local(layer.weight).shape[0] // per_group, 1))


def check_shards(layers: Mapping[str, SparseLayer]) -> None:
    """Raise ShardingError when a weight is cut over ranks elsewhere than between tiles."""
    for name, layer in layers.items():
        weight: Any = layer.weight
        if not is_sharded(weight):
            continue
        for placement, ranks in zip(weight.placements, weight.device_mesh.shape, strict=True):
            if ranks == 1 or not placement.is_shard():
                continue
            _check_cut(name, layer, placement.dim, weight.shape[placement.dim], ranks)


def _check_cut(name: str, layer: SparseLayer, dim: int, size: int, ranks: int) -> None:
    pattern = layer.pattern
    # The axis of groups for the forward pass is `in`; a transposable pattern has groups along both.
    along_in = dim == (0 if layer.stored_in_out else 1)
    along_out = dim == (1 if layer.stored_in_out else 0)
    bound = along_in or (along_out and pattern.transposable)
    rows = -(-size // ranks)
    problem = None
    if pattern.structure == "unstructured":
        problem = "an unstructured pattern compares all weights of a layer"
    elif layer.layout.groups > 1 and rows % (layer.weight.shape[0] // layer.layout.groups):
        problem = f"a shard of {rows} output channels cuts through a group of the convolution"
    elif bound and rows % pattern.m:
        problem = f"a shard of {rows} is no multiple of M = {pattern.m}"
    if problem is not None:
        raise ShardingError(
            f"masks of a sharded model: layer {name!r} with pattern {pattern} has dimension {dim} "
            f"of size {size} cut over {ranks} ranks, and {problem}; use a number of ranks that "
            f"cuts it into multiples of {pattern.m}, pad the layer, shard it elsewhere "
            f"(fully_shard's shard_placement_fn), or leave it dense with exclude={name!r}"
        )
