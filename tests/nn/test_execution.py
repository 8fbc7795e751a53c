"""Autocast, activation checkpointing and torch.compile see the masked weight, without surprises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from tests.nn.conftest import Net
from tests.nn.test_layers import build
from transposable import densify, sparsify
from transposable.nn import refresh_masks, sparse_layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighting", ["masked", "soft", "dense"])
@pytest.mark.parametrize("through", [False, True])
def test_autocast(
    net: Net, x: torch.Tensor, dtype: torch.dtype, weighting: Any, through: bool
) -> None:
    sparsify(net, "2:4T")
    for layer in sparse_layers(net).values():
        layer.weighting = weighting
        layer.straight_through = through
    dense = copy.deepcopy(net)
    densify(dense)
    with torch.autocast("cpu", dtype):
        outputs = net(x), dense(x)
    assert outputs[0].dtype == dtype
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    for output in outputs:
        output.float().square().sum().backward()
    for name, layer in sparse_layers(net).items():
        expected = dense.get_submodule(name).weight.grad
        if weighting == "masked" and not through:
            expected = expected * layer.mask
        assert layer.weight.grad.dtype == torch.float32
        torch.testing.assert_close(layer.weight.grad, expected, rtol=0, atol=0)


def test_autocast_sees_a_refresh(net: Net, x: torch.Tensor) -> None:
    """Autocast keeps casts of weights, and must not keep those of an old mask."""
    sparsify(net, "2:4T")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        before = net(x)
        for layer in sparse_layers(net).values():
            layer.mask.logical_not_()
        assert not torch.equal(net(x), before)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("weighting", ["masked", "soft"])
def test_activation_checkpointing(
    net: Net, x: torch.Tensor, reentrant: bool, through: bool, weighting: Any
) -> None:
    sparsify(net, "2:4T")
    for layer in sparse_layers(net).values():
        layer.weighting = weighting
        layer.straight_through = through
    x.requires_grad_()
    net(x).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


# torch's own way of tracing an autograd.Function is deprecated by torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


COMPILED = ["linear, large", "conv1d", "conv2d, large", "Conv1D"]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("weighting", ["masked", "soft", "dense"])
@pytest.mark.parametrize("through", [False, True])
def test_compiled_layers(fresh_compiler: None, name: str, weighting: Any, through: bool) -> None:
    layer, x = build(name)
    layer.weighting = weighting
    layer.straight_through = through
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for _ in range(3):
        with torch.no_grad():
            layer.weight.normal_()
        refresh_masks({"layer": layer})
        gradients = []
        for module in (layer, compiled):
            layer.zero_grad()
            y = module(x)
            y.square().sum().backward()
            gradients.append((y.detach(), layer.weight.grad.clone()))
        torch.testing.assert_close(gradients[1], gradients[0])
    assert counter.frame_count == 1  # a new mask is no reason to compile again


def test_a_compiled_model_follows_surgery_and_refreshes(
    fresh_compiler: None, net: Net, x: torch.Tensor
) -> None:
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    torch.testing.assert_close(compiled(x), net(x))
    sparsify(net, "2:4T")
    torch.testing.assert_close(compiled(x), net(x))
    assert counter.frame_count == 2
    for _ in range(3):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_()
        assert refresh_masks(net).flip_rate > 0
        torch.testing.assert_close(compiled(x), net(x))
    assert counter.frame_count == 2
    densify(net)
    torch.testing.assert_close(compiled(x), net(x))


@torch.no_grad()
def test_a_compiled_encoder_layer(fresh_compiler: None) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
    sparsify(layer, "2:4T")
    x = torch.randn(2, 5, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("name", COMPILED)
def test_export(name: str) -> None:
    layer, x = build(name)
    exported = torch.export.export(layer, (x,))
    torch.testing.assert_close(exported.module()(x), layer(x))
