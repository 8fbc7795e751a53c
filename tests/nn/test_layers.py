"""Sparse layers by themselves: built, converted and back, weightings, gradients, back ends."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.nn.conftest import Frozen, Net
from transposable import DeviceError, LayerError, PatternError, ScoresError, sparsify
from transposable.nn import (
    DENSE_MASKED,
    Backend,
    DenseMasked,
    SparseConv1d,
    SparseConv2d,
    SparseLayer,
    SparseLinear,
    functional,
    sparse_layers,
    use_backend,
)
from transposable.nn.hf import SparseConv1D

LAYERS: dict[str, tuple[type[Any], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "linear": (SparseLinear, (16, 8), {}, (3, 16)),
    "linear, no bias": (SparseLinear, (10, 6), {"bias": False}, (2, 3, 10)),
    "linear, large": (SparseLinear, (128, 96), {}, (3, 128)),
    "linear, empty batch": (SparseLinear, (16, 8), {}, (0, 16)),
    "conv1d": (SparseConv1d, (8, 16, 3), {"padding": "same"}, (2, 8, 5)),
    "conv1d, circular": (
        SparseConv1d,
        (8, 8, 3),
        {"padding": 1, "padding_mode": "circular", "stride": 2},
        (2, 8, 6),
    ),
    "conv1d, unbatched": (SparseConv1d, (8, 8, 3), {"dilation": 2}, (8, 9)),
    "conv2d": (SparseConv2d, (8, 12, 3), {"padding": 1}, (2, 8, 5, 5)),
    "conv2d, large": (SparseConv2d, (32, 32, 3), {}, (2, 32, 5, 5)),
    "conv2d, reflect, groups": (
        SparseConv2d,
        (16, 16, (3, 1)),
        {"padding": (1, 0), "padding_mode": "reflect", "groups": 2, "bias": False},
        (2, 16, 5, 5),
    ),
    "conv2d, empty batch": (SparseConv2d, (8, 8, 1), {}, (0, 8, 3, 3)),
    "Conv1D": (SparseConv1D, (12, 16), {}, (2, 5, 16)),
    "Conv1D, empty batch": (SparseConv1D, (12, 16), {}, (0, 5, 16)),
}


def build(name: str, pattern: str = "2:4T") -> tuple[SparseLayer, torch.Tensor]:
    kind, sizes, options, shape = LAYERS[name]
    torch.manual_seed(3)
    return kind(*sizes, pattern=pattern, **options), torch.randn(shape)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("weighting", ["masked", "soft", "dense"])
@pytest.mark.parametrize("through", [False, True])
def test_forward_and_backward(name: str, weighting: Any, through: bool) -> None:
    layer, x = build(name)
    layer.weighting = weighting
    layer.straight_through = through
    dense = layer.to_dense()
    assert type(dense) is layer.dense_class
    given = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(each) for module, each in zip((layer, dense), given, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    gradient = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(gradient)
    torch.testing.assert_close(given[0].grad, given[1].grad)
    expected = dense.weight.grad
    if weighting == "masked" and not through:
        expected = expected * layer.mask
    torch.testing.assert_close(layer.weight.grad, expected)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("name", LAYERS)
def test_from_dense_leaves_the_dense_module(name: str, unchanged: Frozen) -> None:
    layer, x = build(name)
    dense = layer.to_dense()
    with unchanged(dense):
        sparse = type(layer).from_dense(dense, "2:4T")
    assert all(p is dict(dense.named_parameters())[key] for key, p in sparse.named_parameters())
    assert torch.equal(sparse.mask, layer.mask)
    torch.testing.assert_close(sparse(x), layer(x), rtol=0, atol=0)
    with unchanged(dense):
        sparse.eval().register_forward_hook(lambda *_: None)
        sparse.weighting = "soft"
    before = sparse.weight.detach().clone()
    back = sparse.to_dense()
    assert back.weight is not sparse.weight
    assert torch.equal(sparse.weight, before)


def test_from_dense_takes_exactly_its_class() -> None:
    class Other(nn.Linear):
        pass

    for wrong in (Other(8, 8), nn.Conv1d(8, 8, 1), SparseLinear(8, 8, pattern="2:4")):
        with pytest.raises(
            LayerError, match=f"received a {type(wrong).__name__}; it takes exactly"
        ):
            SparseLinear.from_dense(wrong, "2:4T")


def test_errors_of_the_constructor() -> None:
    with pytest.raises(PatternError, match="cannot read"):
        SparseLinear(8, 8, pattern="2/4")
    with pytest.raises(LayerError, match="SparseLinear: its weight is 2 x 2"):
        SparseLinear(2, 2, pattern="2:4T")
    with pytest.raises(DeviceError, match=r"'SparseConv2d'.*meta device"):
        SparseConv2d(8, 8, 3, device="meta", pattern="2:4T")
    dense = nn.Linear(8, 8)
    nn.init.constant_(dense.weight, float("nan"))
    with pytest.raises(ScoresError, match="NaN"):
        SparseLinear.from_dense(dense, "2:4T")


def test_a_subclass_of_a_sparse_layer() -> None:
    class Mine(SparseLinear):
        pass

    layer = Mine(8, 8, pattern="2:4T")
    assert type(layer) is Mine
    assert type(layer.to_dense()) is nn.Linear


@pytest.mark.parametrize("name", LAYERS)
def test_repr_names_the_pattern(name: str) -> None:
    layer, _ = build(name)
    assert repr(layer).startswith(f"{type(layer).__name__}(")
    assert repr(layer).endswith(", pattern=2:4T)")


def test_weightings() -> None:
    layer, _ = build("linear")
    assert (layer.weighting, layer.scale.item(), layer.sparsity[3].item()) == ("masked", 0, 0)
    layer.weighting = "soft"
    scale = functional.soft_scale(layer.weight, layer.mask, 4)
    assert torch.equal(layer.scale, scale)
    assert layer.sparsity.tolist() == [2, 4, 1, 1]
    with torch.no_grad():
        layer.weight.normal_()
    layer.weighting = "dense"
    assert layer.effective_weight() is layer.weight
    assert layer.sparsity.tolist() == [2, 4, 1, 2]
    layer.weighting = "soft"
    assert torch.equal(layer.scale, scale)  # fixed once
    with pytest.raises(LayerError, match="received 'hard'; it is one of 'masked', 'soft', 'dense'"):
        layer.weighting = "hard"
    assert layer.weighting == "soft"
    free = SparseLinear(8, 8, pattern="50%")
    with pytest.raises(LayerError, match="'soft' with pattern 50%; the soft threshold needs"):
        free.weighting = "soft"
    assert free.weighting == "masked"


def test_soft_weights_of_a_weight_stored_in_out() -> None:
    conv = Conv1D(12, 16)
    linear = nn.Linear(16, 12)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.t())
    for layer in (conv, linear):
        sparsify(layer, "2:4")
        layer.weighting = "soft"
    assert torch.equal(conv.mask.t(), linear.mask)
    assert torch.equal(conv.effective_weight().t(), linear.effective_weight())


class EvenOnly(Backend):
    """Refuses odd numbers of outputs; counts what it runs."""

    name = "even_only"

    def __init__(self) -> None:
        self.runs = 0

    def refuses(self, layer: SparseLayer) -> str | None:
        out = layer.weight.shape[0]
        return f"{out} outputs are odd" if out % 2 else None

    def run(self, layer: SparseLayer, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return layer.dense_forward(x, layer.effective_weight())


def test_a_layer_that_a_back_end_refuses_still_trains() -> None:
    model = nn.Sequential(nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 8))
    sparsify(model, "2:4T")
    x = torch.randn(4, 16)
    expected = model(x)
    backend = EvenOnly()
    assert use_backend(sparse_layers(model), backend) == {"0": "9 outputs are odd"}
    assert model[0].backend is DENSE_MASKED
    assert model[2].backend is backend
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert backend.runs == 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    model(x).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(x)
        assert (type(twin[0].backend), type(twin[2].backend)) == (DenseMasked, EvenOnly)
        assert twin[2].backend is not backend
    assert use_backend(sparse_layers(model), DENSE_MASKED) == {}
    assert model[2].backend is DENSE_MASKED


def test_a_back_end_that_fails_leaves_all_as_they_were(net: Net) -> None:
    class Broken(EvenOnly):
        def refuses(self, layer: SparseLayer) -> str | None:
            if isinstance(layer, SparseConv1D):
                raise RuntimeError("broken")
            return None

    sparsify(net, "2:4T")
    with pytest.raises(RuntimeError, match="broken"):
        use_backend(sparse_layers(net), Broken())
    assert {layer.backend for layer in sparse_layers(net).values()} == {DENSE_MASKED}
    for wrong in ((net, DENSE_MASKED), (sparse_layers(net), "dense")):
        with pytest.raises(LayerError, match="use_backend: received a"):
            use_backend(*wrong)
