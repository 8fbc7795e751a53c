"""sparsify and densify change what they say, keep every identity, and change nothing on errors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from tests.nn.conftest import Frozen, Net, traits
from transposable import (
    DeviceError,
    LayerError,
    NoEffectWarning,
    Pattern,
    ScoresError,
    ShardingError,
    SolverError,
    densify,
    find_mask,
    sparsify,
)
from transposable.nn import (
    SparseConv1d,
    SparseConv2d,
    SparseLayer,
    SparseLinear,
    refresh_masks,
    sparse_layers,
)
from transposable.nn.hf import SparseConv1D

PATTERNS = ["2:4T", "4:8T", "2:4", "2:4S", "50%"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_kind_of_layer(net: Net, x: torch.Tensor, pattern: str) -> None:
    parameters = dict(net.named_parameters())
    modules = dict(net.named_modules())
    changes = sparsify(net, pattern)
    assert [change.kind for change in changes] == ["Conv2d", "Conv1d", "Linear", "Linear", "Conv1D"]
    kinds = [SparseConv2d, SparseConv1d, SparseLinear, SparseLinear, SparseConv1D]
    assert [type(layer) for layer in sparse_layers(net).values()] == kinds
    assert all(module is modules[name] for name, module in net.named_modules())
    assert all(p is parameters[name] for name, p in net.named_parameters())
    reference = copy.deepcopy(net)
    for change in changes:
        layer = net.get_submodule(change.name)
        assert isinstance(layer, SparseLayer)
        mask = layer.as_mask()
        assert mask.violations() == 0
        assert layer.mask.shape == layer.weight.shape == change.shape
        weight = layer.weight.detach().t() if layer.stored_in_out else layer.weight.detach()
        assert mask == find_mask(weight, pattern, layout=layer.layout)
        assert change.pattern == Pattern.parse(pattern)
        assert change.kept == mask.density
        share = (layer.weight.abs() * layer.mask).sum() / layer.weight.abs().sum()
        assert change.magnitude == pytest.approx(share.item(), rel=1e-6)
        with torch.no_grad():
            reference.get_submodule(change.name).weight.mul_(layer.mask)
    densify(reference)
    assert not sparse_layers(reference)
    torch.testing.assert_close(net(x), reference(x), rtol=0, atol=0)


def test_a_round_trip_leaves_what_was_there(net: Net, x: torch.Tensor) -> None:
    never = traits(net)
    sparsify(net, "2:4T")
    assert repr(net) != never["repr"]
    expected = net(x)
    densify(net)
    after = traits(net)
    different = {key for key in after if repr(after[key]) != repr(never[key])}
    assert {key.split(":")[1] for key in different} == {" value", " version"}
    assert not [key for key in different if ".weight" not in key]
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    assert (net.mlp[0].weight == 0).sum() == net.mlp[0].weight.numel() // 2
    assert list(sparsify(net, "2:4T")) != []


def test_a_dense_layer_stays_as_it_is_when_its_mask_rests(net: Net) -> None:
    before = net.head.weight.detach().clone()
    sparsify(net, "2:4T", include="head")
    net.head.weighting = "dense"
    densify(net)
    assert torch.equal(net.head.weight, before)


def test_references_see_the_sparse_module(x: torch.Tensor) -> None:
    """In lists that are no ModuleList, in hooks, in optimizers made before."""
    layer = nn.Linear(16, 16)
    held = [layer]
    calls: list[str] = []
    layer.register_forward_hook(lambda module, args, y: calls.append(type(module).__name__))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    sparsify(layer, "2:4T")
    before = layer.weight.detach().clone()
    held[0](torch.randn(4, 16)).square().sum().backward()
    assert calls == ["SparseLinear"]
    assert layer.weight.grad[~layer.mask].count_nonzero() == 0
    optimizer.step()
    assert (layer.weight.detach() - before)[layer.mask].count_nonzero() > 0
    after = torch.optim.SGD(layer.parameters(), lr=0.1)
    assert after.param_groups[0]["params"][0] is optimizer.param_groups[0]["params"][0]


def test_modules_in_plain_lists_are_no_modules_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model.more = [nn.Linear(8, 8)]
    assert [change.name for change in sparsify(model, "2:4T")] == ["0"]
    assert type(model.more[0]) is nn.Linear


class Tied(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        second.weight = first.weight

    def masks(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first.mask, self.second.mask


def test_layers_that_share_a_weight() -> None:
    model = Tied(nn.Linear(16, 16), nn.Linear(16, 16))
    sparsify(model, "2:4T")
    for _ in range(2):
        one, other = model.masks()
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
        with torch.no_grad():
            model.first.weight.normal_()
        refresh_masks(model)
    assert model.second.weight is model.first.weight
    densify(model)
    assert (model.second.weight == 0).sum() == 128


def test_a_weight_shared_in_two_steps() -> None:
    model = Tied(nn.Linear(16, 16), nn.Linear(16, 16))
    sparsify(model, "2:4T", include="first")
    with torch.no_grad():
        model.first.weight.normal_()  # its best mask is another one now
    sparsify(model, "2:4T", include="second")
    assert torch.equal(*model.masks())


def test_a_shared_weight_is_shrunk_once(unchanged: Frozen) -> None:
    model = Tied(nn.Linear(16, 16), nn.Linear(16, 16))
    sparsify(model, "2:4")
    for layer in sparse_layers(model).values():
        layer.weighting = "soft"
    expected = model.first.effective_weight().detach()
    densify(model)
    assert torch.equal(model.first.weight, expected)


@pytest.mark.parametrize("pattern", ["2:4T", "2:4"])
def test_a_weight_stored_both_ways(pattern: str, unchanged: Frozen) -> None:
    """[out, in] to one layer and [in, out] to the other: the same mask only if it transposes."""
    model = Tied(nn.Linear(8, 16), Conv1D(8, 16))
    if pattern == "2:4":
        with unchanged(model), pytest.raises(LayerError, match="along different axes"):
            sparsify(model, pattern)
        return
    sparsify(model, pattern)
    assert torch.equal(*model.masks())
    assert [layer.as_mask().violations() for layer in sparse_layers(model).values()] == [0, 0]


def test_a_shared_weight_with_two_patterns(unchanged: Frozen) -> None:
    model = Tied(nn.Linear(16, 16), nn.Linear(16, 16))
    says = "layers 'first' and 'second' share one weight and would read it by different patterns"
    with unchanged(model), pytest.raises(LayerError, match=says):
        sparsify(model, {"first": "2:4T", "second": "4:8T"})
    sparsify(model, {"first": "2:4T"})
    with unchanged(model), pytest.raises(LayerError, match=says):
        sparsify(model, {"second": "4:8T"})


def test_a_tied_embedding_reads_the_dense_weight_until_densify() -> None:
    model = Tied(nn.Embedding(16, 8), nn.Linear(8, 16, bias=False))
    tokens = torch.arange(16)
    before = model.first(tokens).detach().clone()
    sparsify(model, "2:4T")
    assert model.second.weight is model.first.weight
    assert torch.equal(model.first(tokens), before)
    kept = model.second.mask.clone()
    model.second(model.first(tokens)).sum().backward()
    assert model.first.weight.grad is not None
    densify(model)
    assert torch.equal(model.first(tokens), before * kept)


def test_channels_last_weights_have_channels_last_masks() -> None:
    conv = nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last)
    sparsify(conv, "2:4T")
    assert conv.mask.stride() == conv.weight.stride()
    assert conv.effective_weight().stride() == conv.weight.stride()
    refresh_masks(conv)
    assert conv.mask.stride() == conv.weight.stride()
    assert conv.as_mask().violations() == 0


# Errors: each names the layer, and changes nothing.


def with_nan(net: Net) -> None:
    with torch.no_grad():
        net.head.weight[3, 2] = float("nan")


def doubled(net: Net) -> None:
    sparsify(net, "2:4T", include="mlp.2")


def with_attribute(net: Net) -> None:
    net.mlp[0].scale = 2.0


def with_old_weight_norm(net: Net) -> None:
    torch.nn.utils.weight_norm(net.mlp[0])


def with_pruning(net: Net) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(net.mlp[0], "weight", 0.5)


def meta(net: Net) -> None:
    net.head.to("meta")


def integers(net: Net) -> None:
    net.head.weight = nn.Parameter(torch.ones(16, 12, dtype=torch.int32), requires_grad=False)


def small(net: Net) -> None:
    net.mlp[0], net.head = nn.Linear(16, 2), Conv1D(2, 2)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("spoil", "arguments", "error", "says"),
    [
        (with_nan, {}, ScoresError, "layer 'head'.*NaN"),
        (doubled, {}, LayerError, "layer 'mlp.2' is sparse already, with pattern 2:4T; densify"),
        (with_attribute, {}, LayerError, "layer 'mlp.0' has an attribute 'scale' of its own"),
        (with_old_weight_norm, {}, LayerError, "layer 'mlp.0' is no Parameter but is computed"),
        (with_pruning, {}, LayerError, "layer 'mlp.0' is no Parameter but is computed"),
        (meta, {}, DeviceError, "layer 'head'.*meta device.*materialise"),
        (integers, {}, ScoresError, "layer 'head'.*int32"),
        (small, {"pattern": "2:4"}, LayerError, r"layer 'head' cannot.*2 x 2.*exclude='head'"),
        (small, {"pattern": "8:16"}, LayerError, r"and 2 more.*exclude=\['stem', 'conv', 'head'\]"),
        (small, {"solver": "nosuch"}, SolverError, "nosuch"),
        (with_nan, {"pattern": "2:4", "solver": "two_approx"}, SolverError, "layer 'stem'.*2:4"),
    ],
)
def test_errors_change_nothing(
    net: Net,
    spoil: Callable[[Net], None],
    arguments: dict[str, str],
    error: type[Exception],
    says: str,
    unchanged: Frozen,
) -> None:
    spoil(net)
    with unchanged(net), pytest.raises(error, match=says):
        sparsify(net, **{"pattern": "2:4T", **arguments})


@pytest.mark.parametrize(
    ("layer", "pattern", "fits"),
    [
        (nn.Linear(2, 2), "2:4T", False),
        (nn.Linear(2, 3), "2:4T", True),
        (nn.Linear(3, 2), "2:4T", True),
        (nn.Linear(2, 8), "2:4", False),
        (nn.Linear(3, 1), "2:4", True),
        (nn.Linear(4, 4), "4:8T", False),
        (nn.Linear(1, 1), "50%", False),
        (nn.Linear(2, 1), "50%", True),
        (nn.Linear(9, 1), "99%", False),
        (Conv1D(8, 2), "2:4", False),
        (Conv1D(2, 8), "2:4", True),
        (nn.Conv2d(8, 8, 3, groups=8), "2:4T", False),
        (nn.Conv2d(8, 8, 3, groups=2), "2:4T", True),
        (nn.Conv2d(3, 8, 3), "2:4T", True),
        (nn.Conv2d(1, 8, 3), "2:4", False),
    ],
    ids=str,
)
def test_a_pattern_that_prunes_nothing(
    layer: nn.Module, pattern: str, fits: bool, unchanged: Frozen
) -> None:
    if fits:
        (change,) = sparsify(layer, pattern)
        assert change.kept < 1
        return
    with unchanged(layer), pytest.raises(LayerError, match="prunes none"):
        sparsify(layer, pattern)
    kind = {Conv1D: SparseConv1D, nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}[type(layer)]
    with (
        unchanged(layer),
        pytest.raises(LayerError, match=r"from_dense.*prunes none.*use the dense"),
    ):
        kind.from_dense(layer, pattern)


def test_densify_without_sparse_layers(net: Net, unchanged: Frozen) -> None:
    with unchanged(net), pytest.warns(NoEffectWarning, match="Net has no sparse layer"):
        assert densify(net) == []


def test_densify_refuses_what_was_parametrized_since(net: Net) -> None:
    sparsify(net, "2:4T")
    parametrize.register_parametrization(net.head, "weight", nn.Identity())
    before = repr(net)
    with pytest.raises(LayerError, match="layer 'head' was parametrized after"):
        densify(net)
    assert repr(net) == before
    parametrize.remove_parametrizations(net.head, "weight")
    densify(net)


def test_a_refresh_of_a_dense_model(net: Net) -> None:
    with pytest.raises(LayerError, match="refresh_masks: Net has no sparse layer"):
        refresh_masks(net)


def test_a_refresh_with_nan_changes_nothing(net: Net, unchanged: Frozen) -> None:
    sparsify(net, "2:4T")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
        net.head.weight[3, 2] = float("nan")
    with unchanged(net), pytest.raises(ScoresError, match="layer 'head'"):
        refresh_masks(net)


# Sharded models: one process is enough to see that they are recognised.


@pytest.fixture
def mesh(tmp_path):  # type: ignore[no-untyped-def]
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_sharded_models(mesh, net: Net, x: torch.Tensor) -> None:  # type: ignore[no-untyped-def]
    from torch.distributed.fsdp import fully_shard

    dense = copy.deepcopy(net)
    fully_shard(dense.mlp, mesh=mesh)
    with pytest.raises(ShardingError, match=r"layer 'mlp.0' is sharded.*before fully_shard"):
        sparsify(dense, "2:4T")
    leaf = fully_shard(nn.Linear(16, 16), mesh=mesh)
    with pytest.raises(ShardingError, match=r"the model itself. is sharded"):
        sparsify(leaf, "2:4T")

    sparsify(net, "2:4T")
    expected = net(x).detach()
    own = copy.deepcopy(net.mlp[0])
    fully_shard(net.mlp, mesh=mesh)
    torch.testing.assert_close(net(x), expected)
    for layer in (net.mlp[0], net.mlp[2]):
        layer.weighting = "soft"
    own.weighting = "soft"
    assert torch.equal(net.mlp[0].scale, own.scale)
    densify(net)
    own.bake()
    assert type(net.mlp[0]) is nn.Linear
    torch.testing.assert_close(net.mlp[0].weight.full_tensor(), own.weight)

    leaf = nn.Linear(16, 16)
    sparsify(leaf, "2:4T")
    fully_shard(leaf, mesh=mesh)
    with pytest.raises(ShardingError, match=re.escape("fully_shard was applied to layer")):
        densify(leaf)
