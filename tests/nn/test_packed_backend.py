"""Layers on the CPU back end: the numbers of dense-masked ones, in every way a layer is used."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from tests.counted_calls import counted_calls
from tests.nn.conftest import Net
from transposable import MaskController, densify, sparsify
from transposable.nn import (
    DENSE_MASKED,
    NMCpu,
    SparseLayer,
    SparseLinear,
    refresh_masks,
    sparse_layers,
    use_backend,
)
from transposable.sparse import Choice, Stream
from transposable.sparse.handles import find_packed

# torch's own way of tracing an autograd.Function is deprecated by torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

KINDS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(24, 16),
    "no bias": lambda: nn.Linear(24, 16, bias=False),
    "Conv1D": lambda: Conv1D(16, 24),
}


def packed_pair(kind: str, pattern: str = "2:4T") -> tuple[SparseLayer, SparseLayer]:
    """The same layer on the CPU back end and dense-masked."""
    torch.manual_seed(0)
    layer = KINDS[kind]()
    sparsify(layer, pattern)
    assert isinstance(layer, SparseLayer)
    nn.init.normal_(layer.weight)
    twin = copy.deepcopy(layer)
    assert use_backend({"layer": layer}, NMCpu("always")) == {}
    return layer, twin


def check(layer: SparseLayer, twin: SparseLayer, x: torch.Tensor, **tolerance: float) -> None:
    """Outputs and gradients of both, dense-masked in float64 where it can be."""
    found = []
    for each in (layer, twin):
        each.zero_grad()
        given = x.detach().clone(memory_format=torch.preserve_format)
        given = given.as_strided(x.shape, x.stride()) if 0 in x.stride() else given
        given.requires_grad_(x.requires_grad or x.is_leaf)
        y = each(given)
        y.float().square().sum().backward()
        found.append([y, given.grad, *(p.grad for p in each.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, **(tolerance or {"rtol": 1e-4, "atol": 1e-4}))


INPUTS = {
    "2-d": lambda: torch.randn(5, 24),
    "3-d": lambda: torch.randn(2, 3, 24),
    "1-d": lambda: torch.randn(24),
    "no tokens": lambda: torch.randn(0, 24),
    "no tokens, 3-d": lambda: torch.randn(2, 0, 24),
    "every other": lambda: torch.randn(4, 48)[:, ::2],
    "transposed": lambda: torch.randn(24, 6).t(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize("through", [False, True])
def test_numbers(kind: str, shape: str, through: bool) -> None:
    if kind == "Conv1D" and shape == "no tokens, 3-d":
        pytest.skip("the dense Conv1D cannot: its reshape(-1, 24) has no tokens to count with")
    layer, twin = packed_pair(kind)
    layer.straight_through = twin.straight_through = through
    x = INPUTS[shape]()
    with counted_calls() as calls:
        check(layer, twin, x)
        assert calls["matmul"] == 2
    # What is pruned may be anything.
    with torch.no_grad():
        for each in (layer, twin):
            each.weight[~each.mask] = float("nan")
    check(layer, twin, x)


@pytest.mark.parametrize("pattern", ["1:4T", "4:8T", "8:16T", "2:4", "2:4S", "50%"])
def test_patterns(pattern: str) -> None:
    check(*packed_pair("Linear", pattern), torch.randn(7, 24))


def test_bfloat16() -> None:
    layer, twin = packed_pair("Linear")
    layer.bfloat16()
    twin.bfloat16()
    check(layer, twin, torch.randn(5, 24).bfloat16(), rtol=0.05, atol=0.5)
    assert layer.backend.packed.forward.values.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """bfloat16 runs sparse and packs once; float16 the kernels do not know: dense."""
    layer, twin = packed_pair("Linear")
    x = torch.randn(5, 24)
    with counted_calls() as calls:
        for _ in range(3):
            for each in (layer, twin):
                with torch.autocast("cpu", dtype):
                    y = each(x)
                assert y.dtype == dtype
                y.float().sum().backward()
        assert (calls["fill"], calls["matmul"]) == ((1, 3) if dtype == torch.bfloat16 else (0, 0))
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad, rtol=0.05, atol=0.1)


DENSE: dict[str, Callable[[SparseLayer], Any]] = {
    "soft": lambda layer: setattr(layer, "weighting", "soft"),
    "dense": lambda layer: setattr(layer, "weighting", "dense"),
    "float64": lambda layer: layer.double(),
    "float16": lambda layer: layer.half(),
}


@pytest.mark.parametrize("state", DENSE)
@pytest.mark.parametrize("kind", KINDS)
def test_states_that_run_dense(kind: str, state: str) -> None:
    """Exactly the numbers of the dense path, and sparse again afterwards."""
    layer, twin = packed_pair(kind)
    for each in (layer, twin):
        DENSE[state](each)
    with counted_calls() as calls:
        check(layer, twin, torch.randn(5, 24).to(layer.weight.dtype), rtol=0, atol=0)
        assert not calls
        for each in (layer, twin):
            each.weighting = "masked"
            each.float()
        check(layer, twin, torch.randn(5, 24))
        assert calls["matmul"] == 2


def test_what_is_refused() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(16, 16),
            "conv1d": nn.Conv1d(16, 16, 3),
            "conv2d": nn.Conv2d(16, 16, 3),
            "hf": Conv1D(16, 16),
            "f16": nn.Linear(16, 16).half(),
            "f64": nn.Linear(16, 16).double(),
            "bf16": nn.Linear(16, 16).bfloat16(),
            "soft": nn.Linear(16, 16),
            "rests": nn.Linear(16, 16),
            "parametrized": nn.Linear(16, 16),
            "meta": nn.Linear(16, 16),
        }
    )
    sparsify(model, "2:4T")
    layers = sparse_layers(model)
    layers["soft"].weighting = "soft"
    layers["rests"].weighting = "dense"
    model["meta"] = layers["meta"].to("meta")
    parametrize.register_parametrization(layers["parametrized"], "weight", nn.Tanh())
    backend = NMCpu("always")
    assert use_backend(layers, backend) == {
        "conv1d": "it is a Conv1d: the compressed matmul is for linear layers and Conv2d",
        "f16": "its weight is torch.float16, and nm_cpu runs float32 and bfloat16",
        "f64": "its weight is torch.float64, and nm_cpu runs float32 and bfloat16",
        "soft": "its weighting is 'soft', which changes with every weight",
        "parametrized": "its weight is parametrized, so that it would be packed for every call",
        "meta": "its weight is on meta, and nm_cpu runs on the CPU",
    }
    sparse = {name for name, layer in layers.items() if layer.backend is not DENSE_MASKED}
    assert sparse == {"linear", "conv2d", "hf", "bf16", "rests"}
    handles = {layers[name].backend.packed.handle for name in sparse}
    assert len(handles) == 5  # of their own


def test_an_object_for_several_layers_is_slow_and_right() -> None:
    layer, twin = packed_pair("Linear")
    other, other_twin = packed_pair("Conv1D")
    layer.backend = other.backend = NMCpu("always")
    for _ in range(2):
        check(layer, twin, torch.randn(5, 24))
        check(other, other_twin, torch.randn(5, 24))


def test_one_refresh_of_the_values_for_each_optimizer_step() -> None:
    layer, twin = packed_pair("Linear")
    optimizers = [torch.optim.SGD(each.parameters(), 0.1, momentum=0.9) for each in (layer, twin)]
    with counted_calls() as calls:
        for steps in range(1, 4):
            for micro in range(4):
                x = torch.randn(5, 24, generator=torch.Generator().manual_seed(micro))
                for each in (layer, twin):
                    each(x.requires_grad_()).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            assert calls["fill"] == 2 * steps
            assert calls["index"] == 2
        layer.mask.copy_(layer.mask)
        layer(x)
        assert calls["index"] == 3
    torch.testing.assert_close(layer.weight, twin.weight)


def test_a_layer_without_training_has_one_stream() -> None:
    layer, twin = packed_pair("Linear")
    x = torch.randn(5, 24)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, counted_calls() as calls:
            torch.testing.assert_close(layer(x), twin(x))
            torch.testing.assert_close(layer(x), twin(x))
            assert calls["fill"] <= 1
    assert layer.backend.packed.backward is None
    layer(x).sum().backward()  # after inference mode
    layer(x.requires_grad_()).sum().backward()
    twin(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * twin.weight.grad)


@pytest.mark.parametrize("frozen", ["weight", "bias", "both", "input"])
def test_frozen_parts(frozen: str) -> None:
    layer, twin = packed_pair("Linear")
    for each in (layer, twin):
        each.weight.requires_grad_(frozen not in ("weight", "both"))
        each.bias.requires_grad_(frozen not in ("bias", "both"))
    x = torch.randn(5, 24, requires_grad=frozen != "input")
    with counted_calls() as calls:
        for each in (layer, twin):
            x.grad = None
            each(x).sum().backward()
            each.x_grad = x.grad
        assert calls["matmul"] == 1 + (frozen != "input")
        assert calls["weight_gradient"] == (frozen in ("bias", "input"))
    for name in ("weight", "bias"):
        mine, other = getattr(layer, name).grad, getattr(twin, name).grad
        assert (mine is None) == (other is None) == (frozen in (name, "both"))
    assert (layer.x_grad is None) == (twin.x_grad is None) == (frozen == "input")


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    layer, twin = packed_pair("Linear")
    x = torch.randn(5, 24, requires_grad=True)
    with counted_calls() as calls:
        for each in (layer, twin):
            checkpoint(each, x, use_reentrant=reentrant).square().sum().backward()
        assert calls["fill"] == 2
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)


def test_saved_tensors_elsewhere() -> None:
    """Tensors that come back from a hook are others, with the same numbers."""
    layer, twin = packed_pair("Conv1D")
    x = torch.randn(5, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        layer(x).square().sum().backward()
    first, x.grad = x.grad, None
    twin(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)
    torch.testing.assert_close(first, x.grad)


def test_tied_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    sparsify(model, "2:4T")
    twin = copy.deepcopy(model)
    use_backend(sparse_layers(model), NMCpu("always"))
    x = torch.randn(5, 16)
    for _ in range(3):
        for each in (model, twin):
            each.zero_grad()
            each(x).square().sum().backward()
            torch.optim.SGD(each.parameters(), 0.01).step()
        torch.testing.assert_close(model[0].weight, twin[0].weight)
    assert model[2].weight is model[0].weight


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_stand_alone(way: str) -> None:
    layer, twin = packed_pair("Linear")
    x = torch.randn(5, 24)
    before = layer(x)
    other = COPIES[way](layer)
    assert other.backend.name == "nm_cpu"
    assert other.backend.packed.handle != layer.backend.packed.handle
    assert other.backend.packed.pattern == layer.pattern
    with counted_calls() as calls:
        assert torch.equal(other(x), before)
        assert (calls["index"], calls["matmul"]) == (1, 1)
        with torch.no_grad():
            other.weight.mul_(2)
        assert torch.equal(layer(x), before)
        assert calls["fill"] == 1
    check(layer, twin, x)


def test_the_state_dict_is_the_same() -> None:
    layer, twin = packed_pair("Linear")
    layer(torch.randn(5, 24)).sum().backward()
    state = layer.state_dict()
    assert list(state) == list(twin.state_dict())
    other, _ = packed_pair("Linear")
    x = torch.randn(5, 24)
    with torch.no_grad():
        other.weight.normal_()
        refresh_masks({"layer": other})
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), layer(x))


CHANGES: dict[str, Callable[[SparseLayer], Any]] = {
    "weight in place": lambda layer: layer.weight.detach().mul_(2),
    "weight.data": lambda layer: layer.weight.data.mul_(2),
    "other data": lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
    "other Parameter": lambda layer: setattr(
        layer, "weight", nn.Parameter(layer.weight.detach() * 2)
    ),
    "mask in place": lambda layer: layer.mask.copy_(layer.mask.roll(4, 0)),
    "masks refreshed": lambda layer: (
        layer.weight.data.copy_(layer.weight.data.roll(1, 0)),
        refresh_masks({"layer": layer}),
    ),
    "dtype there and back": lambda layer: layer.bfloat16().float(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_seen(kind: str, change: str) -> None:
    layer, twin = packed_pair(kind)
    x = torch.randn(5, 24)
    check(layer, twin, x)
    for each in (layer, twin):
        CHANGES[change](each)
    check(layer, twin, x)


def test_packed_weights_die_with_their_layer() -> None:
    layer, _ = packed_pair("Linear")
    handles = [layer.backend.packed.handle]
    y = layer(torch.randn(5, 24))
    copied = copy.deepcopy(layer)
    handles.append(copied.backend.packed.handle)
    del layer, copied
    gc.collect()
    assert find_packed(handles[0]) is not None  # of the graph of y
    y.sum().backward()
    del y
    gc.collect()
    assert [find_packed(handle) for handle in handles] == [None, None]
    layer, _ = packed_pair("Linear")
    handle = layer.backend.packed.handle
    densify(layer)
    gc.collect()
    assert type(layer) is nn.Linear
    assert find_packed(handle) is None


RECIPES: dict[str, dict[str, Any]] = {
    "static": {"recipe": "static", "refresh": 3},
    "ste": {"recipe": "ste", "refresh": 2},
    "sr-ste": {"recipe": "sr-ste", "refresh": 2},
    "masked-decay": {"recipe": "masked-decay", "refresh": 2},
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01),
    "adamw, fused": lambda parameters: torch.optim.AdamW(parameters, 0.01, fused=True),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_that_of_dense_masked(recipe: str, optimizer: str) -> None:
    """Losses, weights and masks, over refreshes of the masks and micro-batches.

    In the end the weights differ by rounding: the same sums in another order.
    """
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16))
    sparsify(model, "4:8T")
    twin = copy.deepcopy(model)
    assert use_backend(sparse_layers(model), NMCpu("always")) == {}
    runs = []
    for each in (model, twin):
        opt = OPTIMIZERS[optimizer](each.parameters())
        runs.append((each, opt, MaskController(each, **RECIPES[recipe])))
    data = torch.Generator().manual_seed(1)
    with counted_calls() as calls:
        for _ in range(6):
            losses = [0.0, 0.0]
            for _ in range(2):
                x = torch.randn(20, 32, generator=data)
                target = torch.randn(20, 16, generator=data)
                for number, (each, _, _) in enumerate(runs):
                    loss = (each(x) - target).square().mean()
                    loss.backward()
                    losses[number] += loss.item()
            for _, opt, controller in runs:
                opt.step()
                controller.step()
                opt.zero_grad()
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert calls["fill"] == 6 * 3  # the first layer's input needs no gradient
    for name, layer in sparse_layers(model).items():
        other = sparse_layers(twin)[name]
        assert torch.equal(layer.mask, other.mask)
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-3, atol=1e-3)


def test_a_dense_tail() -> None:
    layer, twin = packed_pair("Linear")
    x = torch.randn(5, 24)
    for weighting in ("masked", "dense", "masked"):
        for each in (layer, twin):
            each.weighting = weighting
        check(layer, twin, x)


def test_what_the_caller_decides() -> None:
    layer, twin = packed_pair("Linear")
    use_backend({"layer": layer}, NMCpu(lambda tokens, dtype: Choice(forward=tokens >= 4)))
    with counted_calls() as calls:
        check(layer, twin, torch.randn(3, 24))
        assert calls["matmul"] == 1
        check(layer, twin, torch.randn(4, 24))
        assert calls["matmul"] == 3
        layer.backend.packed.decide = lambda tokens, dtype: Choice(False, False, False)
        check(layer, twin, torch.randn(4, 24), rtol=0, atol=0)
        assert calls["matmul"] == 3


def test_a_mixed_network(net: Net, x: torch.Tensor) -> None:
    sparsify(net, "2:4T")
    twin = copy.deepcopy(net)
    assert set(use_backend(sparse_layers(net), NMCpu("always"))) == {"conv"}
    for each in (net, twin):
        each(x).square().sum().backward()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", [False, True])
def test_compiled(fresh_compiler: None, kind: str, through: bool) -> None:
    layer, twin = packed_pair(kind)
    layer.straight_through = twin.straight_through = through
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    x = torch.randn(5, 24, requires_grad=True)
    for step in range(3):
        with torch.no_grad():
            layer.weight.normal_(generator=torch.Generator().manual_seed(step))
            twin.weight.copy_(layer.weight)
        for each in (layer, twin):
            refresh_masks({"layer": each})
        found = []
        with counted_calls() as calls:
            for module in (compiled, twin):
                layer.zero_grad()
                twin.zero_grad()
                x.grad = None
                y = module(x)
                y.square().sum().backward()
                weight = layer.weight if module is compiled else twin.weight
                found.append((y.detach(), x.grad, weight.grad.clone()))
            assert (calls["matmul"], calls["fill"]) == (2, 2)
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1  # a new mask is no reason to compile again


def test_one_compilation_serves_all_layers(fresh_compiler: None) -> None:
    """As with dense-masked layers: what is compiled in is no layer's handle."""
    torch.manual_seed(0)
    layers = nn.ModuleList(SparseLinear(24, 16, pattern="2:4T") for _ in range(12))
    use_backend(sparse_layers(layers), NMCpu("always"))
    counter = CompileCounterWithBackend("aot_eager")
    x = torch.randn(5, 24)
    with counted_calls() as calls:
        for layer in layers:
            compiled = torch.compile(layer, fullgraph=True, backend=counter)
            torch.testing.assert_close(compiled(x), layer(x))
        assert calls["fill"] == 12
        again = torch.compile(copy.deepcopy(layers[0]), fullgraph=True, backend=counter)
        torch.testing.assert_close(again(x), layers[0](x))
    assert counter.frame_count == 1


def test_compiled_with_autocast_and_other_shapes(fresh_compiler: None) -> None:
    layer, twin = packed_pair("Linear")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (5, 9, 2):
        x = torch.randn(tokens, 24)
        with torch.autocast("cpu", torch.bfloat16):
            y = compiled(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), twin(x), rtol=0.05, atol=0.1)
        y.float().sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), twin(x))


def test_a_gradient_of_compiled_code_after_the_layer_has_died(fresh_compiler: None) -> None:
    layer, twin = packed_pair("Linear")
    x = torch.randn(5, 24, requires_grad=True)
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    layer.backend = DENSE_MASKED
    gc.collect()
    y.sum().backward()
    first, x.grad = x.grad, None
    twin(x).sum().backward()
    torch.testing.assert_close(first, x.grad)


def test_programs_that_run_without_this_package() -> None:
    layer, twin = packed_pair("Linear")
    x = torch.randn(5, 24)
    exported = torch.export.export(layer, (x,))
    assert "transposable" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), twin(x))
    traced = torch.fx.symbolic_trace(layer)
    torch.testing.assert_close(traced(x), twin(x), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch.func.jvp
def test_transforms_run_dense() -> None:
    layer, twin = packed_pair("Linear")
    x = torch.randn(5, 24)
    with counted_calls() as calls:
        for each in (layer, twin):
            parameters = dict(each.named_parameters())

            def loss(given: dict[str, torch.Tensor], one: torch.Tensor, each: Any = each) -> Any:
                return torch.func.functional_call(each, given, (one,)).square().sum()

            each.found = (
                torch.func.grad(loss)(parameters, x)["weight"],
                torch.vmap(each)(x),
                torch.func.jvp(each, (x,), (torch.ones_like(x),))[1],
                torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)["weight"],
            )
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
                each.found += (torch.autograd.forward_ad.unpack_dual(each(dual)).tangent,)
        assert not calls
    assert len(layer.found) == 5
    for one, other in zip(layer.found, twin.found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_functional_call_with_other_weights() -> None:
    layer, twin = packed_pair("Linear")
    x = torch.randn(5, 24)
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        given = {"weight": torch.randn(16, 24, generator=random)}
        torch.testing.assert_close(
            torch.func.functional_call(layer, given, (x,)),
            torch.func.functional_call(twin, given, (x,)),
        )
    check(layer, twin, x)


def test_errors_are_those_of_torch() -> None:
    layer, twin = packed_pair("Linear")
    for x in (torch.randn(5, 23), torch.randn(5, 24).double(), torch.randn(5, 24).half()):
        for each in (layer, twin):
            with pytest.raises(RuntimeError, match=r"shapes cannot be|same dtype"):
                each(x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_fork_after_use(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock, thread or stream of the parent stops the child.

    What torch itself does in several threads, on more than 32,768 entries, does not survive a fork:
    so numpy compares, and no memory is poisoned.
    """
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    torch.manual_seed(0)
    layer = SparseLinear(256, 256, pattern="2:4T")
    use_backend({"layer": layer}, NMCpu("always"))
    x = torch.randn(200, 256)
    torch.set_num_threads(threads)
    with torch.no_grad():
        expected = layer(x).numpy()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                same = (layer(x).numpy() == expected).all()
                layer.weight.numpy()[:] = 0
                zero = (layer(x).numpy() == layer.bias.numpy()).all()
                status = 0 if same and zero else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (layer(x).numpy() == expected).all()


def test_a_stream_of_a_layer_can_be_read() -> None:
    layer, _ = packed_pair("Conv1D")
    layer(torch.randn(2, 24, requires_grad=True)).sum().backward()
    packed = layer.backend.packed
    assert isinstance(packed.forward, Stream)
    assert torch.equal(packed.forward.dense(), layer.effective_weight().detach().t())
    assert torch.equal(packed.backward.dense(), layer.effective_weight().detach())
