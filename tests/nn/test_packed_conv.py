"""Conv2d layers on the CPU back end: the numbers of dense-masked ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize

from tests.counted_calls import counted_calls
from transposable import MaskController, sparsify
from transposable.nn import (
    DENSE_MASKED,
    NMCpu,
    SparseConv2d,
    SparseLayer,
    sparse_layers,
    use_backend,
)
from transposable.sparse import Choice

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning"),
]

KINDS: dict[str, Callable[[], nn.Module]] = {
    "3x3": lambda: nn.Conv2d(12, 16, 3, padding=1),
    "1x1, no bias": lambda: nn.Conv2d(12, 16, 1, bias=False),
    "stride": lambda: nn.Conv2d(12, 16, 3, stride=2, padding=1),
    "same": lambda: nn.Conv2d(12, 16, (2, 5), padding="same", dilation=(1, 2)),
    "channels last": lambda: nn.Conv2d(12, 16, 3).to(memory_format=torch.channels_last),
}


def packed_pair(kind: str, pattern: str = "2:4T") -> tuple[SparseLayer, SparseLayer]:
    """The same layer on the CPU back end and dense-masked."""
    torch.manual_seed(0)
    layer = KINDS[kind]()
    sparsify(layer, pattern)
    assert isinstance(layer, SparseConv2d)
    twin = copy.deepcopy(layer)
    assert use_backend({"layer": layer}, NMCpu("always")) == {}
    return layer, twin


def check(layer: SparseLayer, twin: SparseLayer, x: torch.Tensor, **tolerance: float) -> None:
    found = []
    for each in (layer, twin):
        each.zero_grad()
        given = x.detach().clone().requires_grad_()
        y = each(given)
        y.float().square().sum().backward()
        found.append([y, given.grad, *(p.grad for p in each.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride() or one.numel() == 0
        torch.testing.assert_close(one, other, **(tolerance or {"rtol": 1e-4, "atol": 1e-3}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("shape", [(2, 12, 9, 11), (12, 9, 11), (0, 12, 9, 11)])
def test_numbers(kind: str, through: bool, shape: tuple[int, ...]) -> None:
    layer, twin = packed_pair(kind)
    layer.straight_through = twin.straight_through = through
    x = torch.randn(shape)
    with counted_calls() as calls:
        check(layer, twin, x)
        assert calls["conv2d"] == 1 + (kind != "stride")
        assert calls["conv2d_weight_gradient"] == (not through)
    if len(shape) == 4:
        check(layer, twin, x.contiguous(memory_format=torch.channels_last))


def test_dtypes() -> None:
    layer, twin = packed_pair("3x3")
    x = torch.randn(2, 12, 9, 11)
    for each in (layer, twin):
        each.bfloat16()
    check(layer, twin, x.bfloat16(), rtol=0.05, atol=0.5)
    for each in (layer, twin):
        each.double()
    with counted_calls() as calls:
        check(layer, twin, x.double(), rtol=0, atol=0)
        assert not calls


def test_what_is_refused() -> None:
    model = nn.ModuleDict(
        {
            "conv2d": nn.Conv2d(16, 16, 3),
            "groups": nn.Conv2d(16, 16, 3, groups=2),
            "circular": nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
            "conv1d": nn.Conv1d(16, 16, 3),
            "f16": nn.Conv2d(16, 16, 3).half(),
            "parametrized": nn.Conv2d(16, 16, 3),
        }
    )
    sparsify(model, "2:4T")
    layers = sparse_layers(model)
    parametrize.register_parametrization(layers["parametrized"], "weight", nn.Tanh())
    assert use_backend(layers, NMCpu("always")) == {
        "groups": "it has 2 groups: the compressed convolution has one",
        "circular": "its padding is 'circular': the compressed convolution pads with zeros",
        "conv1d": "it is a Conv1d: the compressed matmul is for linear layers and Conv2d",
        "f16": "its weight is torch.float16, and nm_cpu runs float32 and bfloat16",
        "parametrized": "its weight is parametrized, so that it would be packed for every call",
    }
    x = torch.randn(2, 16, 5, 5)
    for name in ("groups", "circular"):
        assert layers[name].backend is DENSE_MASKED
        layers[name].backend = NMCpu("always")  # against its word
        expected = layers[name].dense_forward(x, layers[name].effective_weight())
        assert torch.equal(layers[name](x), expected)


def test_errors_are_those_of_torch() -> None:
    layer, twin = packed_pair("channels last")
    bad = [
        torch.randn(2, 11, 9, 9),
        torch.randn(2, 12, 9, 2),
        torch.randn(9, 9),
        torch.randn(2, 12, 9, 9).double(),
    ]
    for x in bad:
        messages = []
        for each in (layer, twin):
            with pytest.raises(RuntimeError) as caught:
                each(x)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_copies_stand_alone() -> None:
    layer, twin = packed_pair("3x3")
    x = torch.randn(2, 12, 5, 6)
    before = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.backend.packed.handle != layer.backend.packed.handle
        assert torch.equal(other(x), before)
        with torch.no_grad():
            other.weight.mul_(2)
        assert torch.equal(layer(x), before)
    check(layer, twin, x)


def test_training_is_that_of_dense_masked() -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1)
    )
    sparsify(model, "2:4T")
    twin = copy.deepcopy(model)
    assert use_backend(sparse_layers(model), NMCpu("always")) == {}
    runs = []
    for each in (model, twin):
        optimizer = torch.optim.SGD(each.parameters(), 0.05, momentum=0.9)
        runs.append((each, optimizer, MaskController(each, recipe="sr-ste", refresh=2)))
    data = torch.Generator().manual_seed(1)
    with counted_calls() as calls:
        for _ in range(5):
            x = torch.randn(4, 8, 7, 7, generator=data)
            losses = []
            for each, optimizer, controller in runs:
                loss = (each(x) - x).square().mean()
                loss.backward()
                optimizer.step()
                controller.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert calls["fill"] == 5 * 3  # the first layer's input needs no gradient
    for name, layer in sparse_layers(model).items():
        assert torch.equal(layer.mask, sparse_layers(twin)[name].mask)


def test_what_the_caller_decides() -> None:
    layer, twin = packed_pair("3x3")
    asked: list[int] = []

    def decide(tokens: int, dtype: torch.dtype) -> Choice:
        asked.append(tokens)
        return Choice(forward=tokens > 100)

    use_backend({"layer": layer}, NMCpu(decide))
    with counted_calls() as calls:
        check(layer, twin, torch.randn(2, 12, 5, 7))
        assert calls["conv2d"] == 1
        check(layer, twin, torch.randn(3, 12, 5, 7))
        assert calls["conv2d"] == 3
    assert set(asked) == {70, 105}


@pytest.mark.parametrize("kind", ["3x3", "same", "channels last"])
def test_compiled(kind: str) -> None:
    layer, twin = packed_pair(kind)
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled: Any = torch.compile(layer, fullgraph=True, backend=counter)
    x = torch.randn(2, 12, 9, 11, requires_grad=True)
    for _ in range(2):
        found = []
        for module in (compiled, twin):
            layer.zero_grad()
            twin.zero_grad()
            x.grad = None
            y = module(x)
            y.square().sum().backward()
            weight = layer.weight if module is compiled else twin.weight
            found.append((y.detach(), x.grad, weight.grad.clone()))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)
        with torch.no_grad():
            layer.weight.mul_(0.5)
            twin.weight.mul_(0.5)
    torch._dynamo.reset()
    assert counter.frame_count == 1


def test_transforms_run_dense() -> None:
    layer, twin = packed_pair("3x3")
    x = torch.randn(3, 12, 5, 6)
    with counted_calls() as calls:
        assert torch.equal(torch.vmap(layer)(x), torch.vmap(twin)(x))
        assert not calls
    exported = torch.export.export(layer, (x,))
    assert "transposable" not in str(exported.graph)
