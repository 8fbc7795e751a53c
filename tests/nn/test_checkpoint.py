"""State dicts: everything comes back, and what does not belong is refused before it is loaded."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from tests.nn.conftest import Frozen, Net
from transposable import CheckpointError, Pattern, densify, sparsify
from transposable.nn import SparseLinear, refresh_masks, sparse_layers
from transposable.nn.checkpoint import STRUCTURES, WEIGHTINGS, decode, encode

State = dict[str, Any]


def sparse_net(seed: int, pattern: str = "2:4T") -> Net:
    torch.manual_seed(seed)
    net = Net()
    sparsify(net, pattern)
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    weightings = [[layer.weighting for layer in sparse_layers(model).values()] for model in (a, b)]
    return (
        list(one) == list(other)
        and all(torch.equal(one[key], other[key]) for key in one)
        and weightings[0] == weightings[1]
    )


def test_the_code_of_every_pattern() -> None:
    for text in ("2:4", "2:4T", "3:8S", "50%", "33.3333%"):
        for weighting in WEIGHTINGS:
            pattern = Pattern.parse(text)
            assert decode(encode(pattern, weighting)) == (pattern, weighting)


def test_the_code_is_what_files_have() -> None:
    """Numbers in files of users: these lists may only grow."""
    assert STRUCTURES[:4] == ("row", "transposable", "sequential", "unstructured")
    assert WEIGHTINGS[:3] == ("masked", "soft", "dense")
    assert encode(Pattern.parse("4:8S"), "dense").tolist() == [4, 8, 2, 2]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_comes_back(weighting: Any, assign: bool, x: torch.Tensor) -> None:
    model, other = sparse_net(0), sparse_net(1)
    for layer in sparse_layers(model).values():
        layer.weighting = weighting
    assert not same(model, other)
    state = copy.deepcopy(model.state_dict())
    report = other.load_state_dict(state, assign=assign)
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    assert same(model, other)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    assert all(layer.scale > 0 for layer in sparse_layers(other).values()) == (weighting == "soft")


def test_keys() -> None:
    assert [key for key in sparse_net(0).state_dict() if key.startswith("mlp.0")] == [
        "mlp.0.weight",
        "mlp.0.bias",
        "mlp.0.mask",
        "mlp.0.sparsity",
        "mlp.0.scale",
    ]


def of_another_pattern(state: State) -> str:
    state["head.sparsity"] = encode(Pattern.parse("4:8T"), "masked")
    return "layer 'head' has pattern 2:4T, and the checkpoint holds 4:8T; sparsify the model with"


def of_another_structure(state: State) -> str:
    state["head.sparsity"] = encode(Pattern.parse("2:4"), "masked")
    return "layer 'head' has pattern 2:4T, and the checkpoint holds 2:4;"


def unknown_structure(state: State) -> str:
    state["head.sparsity"] = torch.tensor([2, 4, 9, 0])
    return "layer 'head' holds the code [2, 4, 9, 0], which names no pattern"


def unknown_weighting(state: State) -> str:
    state["head.sparsity"] = torch.tensor([2, 4, 1, -1])
    return "layer 'head' holds the code [2, 4, 1, -1], which names no pattern"


def impossible_pattern(state: State) -> str:
    state["head.sparsity"] = torch.tensor([4, 2, 1, 0])
    return "layer 'head' holds the code [4, 2, 1, 0], which names no pattern"


def short_code(state: State) -> str:
    state["head.sparsity"] = torch.tensor([2, 4])
    return "layer 'head' holds the code [2, 4], which names no pattern"


def float_code(state: State) -> str:
    state["head.sparsity"] = torch.tensor([2.0, 4.0, 1.0, 0.0])
    return "layer 'head' holds the code [2.0, 4.0, 1.0, 0.0], which names no pattern"


def full_mask(state: State) -> str:
    state["head.mask"] = torch.ones(16, 12, dtype=torch.bool)
    return "layer 'head' has a mask in the checkpoint that breaks 2:4T in 96 groups"


def one_too_many(state: State) -> str:
    row, column = (~state["head.mask"]).nonzero()[0].tolist()
    state["head.mask"][row, column] = True
    return "layer 'head' has a mask in the checkpoint that breaks 2:4T in 2 groups"


def float_mask(state: State) -> str:
    state["head.mask"] = state["head.mask"].float()
    return "layer 'head' has a mask of dtype torch.float32 in the checkpoint"


SPOILED = [
    of_another_pattern,
    of_another_structure,
    unknown_structure,
    unknown_weighting,
    impossible_pattern,
    short_code,
    float_code,
    full_mask,
    one_too_many,
    float_mask,
]


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("strict", [True, False])
def test_nothing_is_loaded_of_a_checkpoint_that_does_not_belong(
    spoil: Callable[[State], str], strict: bool, unchanged: Frozen
) -> None:
    state = copy.deepcopy(sparse_net(1).state_dict())
    says = re.escape(spoil(state))
    net = sparse_net(0)
    with unchanged(net), pytest.raises(CheckpointError, match=says):
        net.load_state_dict(state, strict=strict)


def through_pickle(net: Net, path: Path) -> nn.Module:
    return pickle.loads(pickle.dumps(net))  # type: ignore[no-any-return]


def through_file(net: Net, path: Path) -> nn.Module:
    torch.save(net, path / "net.pt")
    return torch.load(path / "net.pt", weights_only=False)  # type: ignore[no-any-return]


def twice(net: Net, path: Path) -> nn.Module:
    densify(net)
    sparsify(net, "2:4T", include=["stem", "conv"])
    sparsify(net, "2:4T", exclude=["stem", "conv"])
    return net


@pytest.mark.parametrize(
    "copied",
    [lambda net, path: copy.deepcopy(net), through_pickle, through_file, twice],
    ids=["deepcopy", "pickle", "torch.save", "twice"],
)
def test_copies_are_guarded_too(
    copied: Callable[[Net, Path], nn.Module], tmp_path: Path, unchanged: Frozen, x: torch.Tensor
) -> None:
    net = copied(sparse_net(0), tmp_path)
    assert [len(m._load_state_dict_pre_hooks) for m in (net, net.mlp, net.head)] == [1, 1, 0]
    state = copy.deepcopy(sparse_net(1).state_dict())
    of_another_pattern(state)
    with unchanged(net), pytest.raises(CheckpointError, match="'head'"):
        net.load_state_dict(state)
    good = sparse_net(2)
    net.load_state_dict(good.state_dict())
    assert torch.equal(net(x), good(x))


def test_a_copy_does_not_look_at_the_original() -> None:
    """The hook of a deep copy must see the layers of the copy."""
    net = sparse_net(0)
    twin = copy.deepcopy(net)
    densify(net)
    state = copy.deepcopy(sparse_net(1).state_dict())
    of_another_pattern(state)
    with pytest.raises(CheckpointError):
        twin.load_state_dict(state)


def test_wrapped_models_are_guarded(unchanged: Frozen) -> None:
    wrapped = nn.Sequential(OrderedDict(module=sparse_net(0)))
    state = {f"module.{key}": value for key, value in sparse_net(1).state_dict().items()}
    state["module.head.sparsity"] = torch.tensor([1, 4, 1, 0])
    with unchanged(wrapped), pytest.raises(CheckpointError, match=r"layer 'module\.head'"):
        wrapped.load_state_dict(state)


def test_a_layer_by_itself_is_guarded(unchanged: Frozen) -> None:
    layer = SparseLinear(16, 8, pattern="2:4T")
    state = SparseLinear(16, 8, pattern="2:4").state_dict()
    with unchanged(layer), pytest.raises(CheckpointError, match="layer 'SparseLinear' has pattern"):
        layer.load_state_dict(state)


def test_a_part_of_a_model_is_guarded(unchanged: Frozen) -> None:
    net = sparse_net(0)
    state = copy.deepcopy(sparse_net(1).mlp.state_dict())
    state["2.mask"] = torch.ones_like(state["2.mask"])
    with unchanged(net), pytest.raises(CheckpointError, match="layer '2' has a mask"):
        net.mlp.load_state_dict(state)
    with unchanged(net), pytest.raises(CheckpointError, match="layer '2' has a mask"):
        copy.deepcopy(net.mlp).load_state_dict(state)


def test_a_mask_is_read_twice_however_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    from transposable import Mask

    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(8, 8))))
    sparsify(model, "2:4T")
    calls = []
    count = Mask.violations
    monkeypatch.setattr(Mask, "violations", lambda mask: calls.append(1) or count(mask))
    model.load_state_dict(model.state_dict())
    assert len(calls) == 2


def test_densify_takes_the_guard_away() -> None:
    outer = nn.Sequential(sparse_net(0), nn.Linear(8, 8))
    sparsify(outer, "2:4T", include="1")
    densify(outer[0])
    assert not outer[0]._load_state_dict_pre_hooks
    assert outer._load_state_dict_pre_hooks
    densify(outer)
    assert not any(module._load_state_dict_pre_hooks for module in outer.modules())


def test_other_hooks_stay() -> None:
    calls = []
    net = Net()
    net.register_load_state_dict_pre_hook(lambda *_: calls.append(1))
    sparsify(net, "2:4T")
    densify(net)
    net.load_state_dict(Net().state_dict())
    assert calls == [1]


def test_dense_into_sparse() -> None:
    net, dense = sparse_net(0), Net()
    with pytest.raises(RuntimeError, match=r'Missing key.*"stem.mask", "stem.sparsity"'):
        net.load_state_dict(dense.state_dict())
    report = net.load_state_dict(dense.state_dict(), strict=False)
    assert len(report.missing_keys) == 15
    refresh_masks(net)
    sparsify(dense, "2:4T")
    assert same(net, dense)


def test_sparse_into_dense() -> None:
    net, dense = sparse_net(0), Net()
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"stem.mask", "stem.sparsity"'):
        dense.load_state_dict(net.state_dict())
    densify(net)
    dense.load_state_dict(net.state_dict())
    assert torch.equal(dense.head.weight, net.head.weight)


def test_other_shapes_are_reported_by_torch() -> None:
    model, other = nn.Linear(16, 8), nn.Linear(24, 8)
    sparsify(model, "2:4T")
    sparsify(other, "2:4T")
    with pytest.raises(RuntimeError, match=r"size mismatch for mask"):
        model.load_state_dict(other.state_dict())


def test_a_dense_tail_is_dense_when_it_comes_back() -> None:
    """Without a controller: the file says how the weights count."""
    tail, other = sparse_net(0), sparse_net(1)
    for layer in sparse_layers(tail).values():
        layer.weighting = "dense"
    other.load_state_dict(tail.state_dict())
    assert other.head.effective_weight() is other.head.weight
    densify(other)
    assert torch.equal(other.head.weight, tail.head.weight)
    assert other.head.weight.count_nonzero() == other.head.weight.numel()


def test_a_shared_module_is_checked_under_both_names(unchanged: Frozen) -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    sparsify(model, "2:4T")
    state = copy.deepcopy(model.state_dict())
    state["2.mask"] = torch.ones(8, 8, dtype=torch.bool)
    with unchanged(model), pytest.raises(CheckpointError, match="layer '2'"):
        model.load_state_dict(state)


def test_safetensors(tmp_path: Path, x: torch.Tensor) -> None:
    model, other = sparse_net(0), sparse_net(1)
    for layer in sparse_layers(model).values():
        layer.weighting = "soft"
    save_model(model, str(tmp_path / "model.safetensors"))
    missing, unexpected = load_model(other, str(tmp_path / "model.safetensors"))
    assert (missing, unexpected) == (set(), [])
    assert same(model, other)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.a, self.b = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False)
        self.a.weight = self.b.weight = self.embed.weight


def test_safetensors_of_tied_layers(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    for each in (model, other):
        sparsify(each, "2:4T")
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert same(model, other)
    assert other.a.weight is other.embed.weight


def test_torch_save_of_a_state_dict(tmp_path: Path) -> None:
    model, other = sparse_net(0, "4:8T"), sparse_net(1, "4:8T")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(model, other)


def test_a_model_on_the_meta_device_takes_a_checkpoint() -> None:
    model, other = sparse_net(0), sparse_net(1).to("meta")
    spoiled = model.state_dict()
    of_another_pattern(spoiled)
    with pytest.raises(CheckpointError, match="'head'"):
        other.load_state_dict(spoiled, assign=True)
    other.load_state_dict(model.state_dict(), assign=True)
    assert same(model, other)
    assert not other.head.mask.is_meta
