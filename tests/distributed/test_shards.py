"""Where weights may be cut, for any number of ranks: no process is started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from transposable import ShardingError, find_mask
from transposable.nn import SparseConv2d, SparseLayer, SparseLinear
from transposable.nn.masks import best_mask
from transposable.nn.sharding import check_shards, local, local_layout, local_part


@contextmanager
def one_of(ranks: int, rank: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def parts(layer: SparseLayer, dim: int, ranks: int) -> list[torch.Tensor]:
    """The masks that each rank finds for its part, after a check that each part is where it is."""
    found = []
    weight = layer.weight
    for rank in range(ranks):
        with one_of(ranks, rank):
            # torch keeps what it found out for a mesh: equal ones would share the first one's rank.
            mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=(f"rank{rank}",))
            cut = distribute_tensor(weight.detach(), mesh, [Shard(dim)], src_data_rank=None)
            layer._parameters["weight"] = nn.Parameter(cut)
            try:
                check_shards({"layer": layer})
                assert torch.equal(local_part(weight.detach(), layer.weight), local(cut))
                found.append(
                    best_mask(
                        local(cut), layer.pattern, local_layout(layer), False, "auto", "layer"
                    )
                )
            finally:
                layer._parameters["weight"] = weight
    return found


PATTERNS = st.sampled_from(["1:2", "2:4", "2:4T", "1:4T", "4:8T", "4:8S", "50%"])


@example(pattern="2:4T", groups=1, per_group=16, inputs=8, kernel=2, dim=0, ranks=4, seed=0)
@example(pattern="2:4T", groups=2, per_group=16, inputs=8, kernel=1, dim=0, ranks=8, seed=0)
@example(pattern="2:4", groups=2, per_group=6, inputs=8, kernel=1, dim=0, ranks=6, seed=0)
@example(pattern="2:4T", groups=4, per_group=6, inputs=8, kernel=1, dim=0, ranks=3, seed=0)
@example(pattern="2:4T", groups=1, per_group=8, inputs=12, kernel=3, dim=2, ranks=2, seed=0)
@given(
    PATTERNS,
    st.sampled_from([1, 1, 2, 3, 4]),
    st.integers(1, 24),
    st.integers(9, 24),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
def test_an_accepted_cut_gives_the_masks_of_the_whole(
    pattern: str,
    groups: int,
    per_group: int,
    inputs: int,
    kernel: int,
    dim: int,
    ranks: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    layer = SparseConv2d(
        inputs * groups, per_group * groups, kernel, groups=groups, pattern=pattern, bias=False
    )
    size = layer.weight.shape[dim]
    rows = -(-size // ranks)
    m = layer.pattern.m
    bound = dim == 1 or (dim == 0 and not pattern[-1].isdigit())
    try:
        masks = parts(layer, dim, ranks)
    except ShardingError:
        assert rows < size, "nothing was cut"
        assert pattern == "50%" or (groups > 1 and rows % per_group) or (bound and rows % m)
        return
    assert torch.equal(torch.cat(masks, dim), layer.mask)
    assert rows >= size or pattern != "50%"


@given(st.integers(1, 40), st.integers(1, 8), st.sampled_from(["2:4", "2:4T", "4:8T"]))
def test_a_refused_cut_of_a_linear_layer_really_cuts_a_tile(
    out: int, ranks: int, pattern: str
) -> None:
    layer = SparseLinear(16, out, pattern=pattern)
    rows = -(-out // ranks)
    cuts = pattern.endswith("T") and any(cut % layer.pattern.m for cut in range(rows, out, rows))
    if cuts:
        with pytest.raises(ShardingError, match=f"shard of {rows} is no multiple of M"):
            parts(layer, 0, ranks)
    else:
        parts(layer, 0, ranks)


def test_the_message_for_two_cuts_of_one_dimension() -> None:
    layer = SparseLinear(16, 16, pattern="2:4T")
    with one_of(4, 0):
        mesh = init_device_mesh("cpu", (2, 2))
        cut = distribute_tensor(
            layer.weight.detach(), mesh, [Shard(0), Shard(0)], src_data_rank=None
        )
        layer.weight = nn.Parameter(cut)
        with pytest.raises(ShardingError, match="a dimension may be cut once"):
            check_shards({"layer": layer})


def test_the_same_rank_has_the_whole_where_nothing_is_cut() -> None:
    weight = torch.randn(8, 8)
    layer = SparseLinear(8, 8, pattern="2:4T")
    assert torch.equal(local(weight), weight)
    assert local_part(layer.mask, weight) is layer.mask
    assert torch.equal(
        best_mask(weight, layer.pattern, layer.layout, False, "auto", "x"),
        find_mask(weight, "2:4T").tensor,
    )
