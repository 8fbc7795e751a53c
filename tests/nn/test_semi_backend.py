"""Layers on sparse tensor cores: on the readable twin, and on fakes of the library."""

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
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from tests.sparse.semi.fake_gpu import Calls, gpu
from transposable import MaskController, sparsify
from transposable.errors import LayerError
from transposable.nn import (
    DENSE_MASKED,
    NMCuda,
    SparseLayer,
    SparseLinear,
    refresh_masks,
    sparse_layers,
    use_backend,
)
from transposable.sparse import Choice, PlannedSemi
from transposable.train import SRSTE, Every

__all__ = ["gpu"]
# torch's own way of tracing an autograd.Function is deprecated by torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

KINDS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(64, 48),
    "no bias": lambda: nn.Linear(64, 48, bias=False),
    "Conv1D": lambda: Conv1D(48, 64),
}


def pair(
    kind: str = "Linear",
    dtype: torch.dtype = torch.bfloat16,
    pattern: str = "2:4T",
    format: Any = "reference",
    **how: Any,
) -> tuple[SparseLayer, SparseLayer]:
    """The same layer on the back end and dense-masked."""
    torch.manual_seed(0)
    layer = KINDS[kind]().to(dtype)
    sparsify(layer, pattern)
    assert isinstance(layer, SparseLayer)
    nn.init.normal_(layer.weight)
    refresh_masks({"layer": layer})
    twin = copy.deepcopy(layer)
    twin.backend = DENSE_MASKED
    backend = NMCuda("always", format=format, **how)
    if format == "reference":
        assert use_backend({"layer": layer}, backend) == {}
    else:  # which is for CUDA, and the fakes are not
        layer.backend = backend.for_layer(layer)
    return layer, twin


def check(layer: nn.Module, twin: nn.Module, x: torch.Tensor) -> None:
    """Outputs and gradients of both, as a whole, up to rounding in half precision."""
    found = []
    for each in (layer, twin):
        each.zero_grad()
        given = x.detach().clone().requires_grad_()
        y = each(given)
        y.float().square().sum().backward()
        found.append([y, given.grad, *(p.grad for p in each.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        error = (one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30)
        assert error < 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["reference", "cusparselt"])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("shape", [(24, 64), (2, 5, 64), (64,)], ids=str)
def test_numbers(gpu: Calls, kind: str, format: str, through: bool, shape: tuple[int, ...]) -> None:
    layer, twin = pair(kind)
    layer.backend = NMCuda("always", format=format).for_layer(layer)  # type: ignore[arg-type]
    layer.straight_through = twin.straight_through = through
    x = torch.randn(shape).bfloat16()
    check(layer, twin, x)
    assert layer.backend.packed.packings == 2
    with torch.no_grad():  # what is pruned may be anything
        for each in (layer, twin):
            each.weight[~each.mask] = float("nan")
    check(layer, twin, x)
    assert layer.backend.packed.packings == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    check(*pair(dtype=dtype), torch.randn(9, 64).to(dtype))


def test_autocast_packs_a_float32_weight_in_its_dtype() -> None:
    layer, twin = pair(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        check(layer, twin, torch.randn(9, 64))
    kept = layer.backend.packed._directions[False].operand
    assert kept.values.dtype == torch.bfloat16


def test_micro_batches_share_what_is_packed(gpu: Calls) -> None:
    layer, twin = pair(format="cusparselt")
    optimizers = [torch.optim.AdamW(m.parameters(), 0.01, fused=True) for m in (layer, twin)]
    for step in range(1, 4):
        for _ in range(3):
            check(layer, twin, torch.randn(8, 64).bfloat16())
        assert layer.backend.packed.packings == 2 * step
        for optimizer in optimizers:
            optimizer.step()


def test_refreshed_masks_are_used(gpu: Calls) -> None:
    layer, twin = pair(format="cusparselt")
    controller = MaskController(layer, SRSTE(), Every(1))
    x = torch.randn(16, 64).bfloat16()
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    for _ in range(3):
        layer(x).float().square().sum().backward()
        optimizer.step()
        controller.step()
        optimizer.zero_grad()
        twin.load_state_dict(layer.state_dict())
        twin.straight_through = layer.straight_through
        check(layer, twin, x)
    assert controller.history[-1].flip_rate > 0


def test_rows_only_patterns_run_forward(gpu: Calls) -> None:
    layer, twin = pair(pattern="2:4", format="cusparselt")
    check(layer, twin, torch.randn(16, 64).bfloat16())
    assert layer.backend.packed.packings == 1


def test_what_is_refused(gpu: Calls) -> None:
    def reason(layer: SparseLayer, **how: Any) -> str:
        (found,) = use_backend({"layer": layer}, NMCuda("always", **how)).values()
        assert layer.backend is DENSE_MASKED
        return found

    def layer(out: int = 64, into: int = 64, pattern: str = "2:4T", **more: Any) -> SparseLinear:
        return SparseLinear(into, out, pattern=pattern, **{"dtype": torch.bfloat16, **more})

    ask: Any = {"format": "reference"}
    assert (
        reason(layer(), format="cusparselt") == "its weight is on cpu, and cusparselt runs on CUDA"
    )
    assert "4:8T: sparse tensor cores take two of every four" in reason(
        layer(pattern="4:8T"), **ask
    )
    assert "multiples of 4" in reason(layer(66), **ask)
    soft = layer()
    soft.weighting = "soft"
    assert "soft" in reason(soft, **ask)
    changed = layer()
    parametrize.register_parametrization(changed, "bias", nn.Identity())
    assert "parametrized" in reason(changed, **ask)
    conv = nn.Conv2d(16, 16, 1)
    sparsify(conv, "2:4T")
    assert "only linear layers" in reason(conv, **ask)  # type: ignore[arg-type]
    apart = layer()
    apart.mask = apart.mask.to("meta")
    assert "its mask is on meta and its weight on cpu" in reason(apart, **ask)
    with pytest.raises(LayerError, match="plan='often'"):
        NMCuda("often")  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="format='cublas'"):
        NMCuda(format="cublas")  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="weight_gradient='sparse'"):
        NMCuda(weight_gradient="sparse")  # type: ignore[arg-type]


def test_what_runs_dense_at_the_moment() -> None:
    layer, twin = pair()
    x = torch.randn(5, 64).bfloat16()
    layer.weighting = twin.weighting = "dense"
    check(layer, twin, x)
    layer.weighting = twin.weighting = "masked"
    assert torch.equal(torch.func.vmap(layer)(x[:, None]), torch.func.vmap(twin)(x[:, None]))
    layer.double(), twin.double()
    with pytest.raises(RuntimeError):  # torch's own words
        layer(x)
    assert layer.backend.packed.packings == 0
    traced = torch.export.export(layer, (x.double(),)).module()
    assert torch.allclose(traced(x.double()), twin(x.double()))


def test_decisions() -> None:
    asked = []

    def decide(tokens: int, dtype: torch.dtype) -> Choice:
        asked.append((tokens, dtype))
        return Choice(tokens >= 8, False, False)

    layer, twin = pair()
    layer.backend = NMCuda(decide, format="reference").for_layer(layer)
    for tokens, packings in ((4, 0), (8, 1)):
        check(layer, twin, torch.randn(tokens, 64).bfloat16())
        assert layer.backend.packed.packings == packings
    assert set(asked) == {(4, torch.bfloat16), (8, torch.bfloat16)}


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies(way: str) -> None:
    layer, twin = pair(weight_gradient="mvue")
    other = copy.deepcopy(layer) if way == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert other.backend.packed.handle != layer.backend.packed.handle
    assert other.backend.weight_gradient == "mvue"
    x = torch.randn(4, 64).bfloat16()
    assert torch.equal(other(x), layer(x))
    assert (layer(x).float() - twin(x).float()).norm() < 0.02 * twin(x).float().norm()


def test_activation_checkpointing() -> None:
    layer, twin = pair()
    x = torch.randn(16, 64).bfloat16()
    for reentrant in (False, True):

        class Checkpointed(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: torch.Tensor, how: bool = reentrant) -> torch.Tensor:
                y: torch.Tensor = checkpoint(self.inner, x, use_reentrant=how)
                return y

        check(Checkpointed(layer), twin, x)


def test_the_estimated_weight_gradient() -> None:
    """Unbiased: the mean of many is the dense one; y and dx are as ever."""
    layer, twin = pair(weight_gradient="mvue")
    x, dy = torch.randn(32, 64).bfloat16(), torch.randn(32, 48).bfloat16()
    torch.manual_seed(0)
    for through in (False, True):
        layer.straight_through = twin.straight_through = through
        draws = []
        for _ in range(200):
            layer.zero_grad()
            layer(x).backward(dy)
            draws.append(layer.weight.grad.double())
        twin.zero_grad()
        twin(x).backward(dy)
        mean, spread = torch.stack(draws).mean(0), torch.stack(draws).std(0)
        wanted = twin.weight.grad.double()
        assert ((mean - wanted).abs() <= 6 * spread / 200**0.5 + 0.1).all()
        assert spread.max() > 0.1
        assert through or not mean[~layer.mask].any()


def test_compiled_as_one_graph() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64), nn.Linear(64, 64))
    model.bfloat16()
    sparsify(model, "2:4T")
    twin = copy.deepcopy(model)
    use_backend(sparse_layers(twin), DENSE_MASKED)
    assert use_backend(sparse_layers(model), NMCuda("always", format="reference")) == {}
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for tokens in (16, 16, 24):
        check(compiled, twin, torch.randn(tokens, 64).bfloat16())
    assert counter.frame_count <= 2
    with torch.no_grad():
        model[0].weight.mul_(2)
        twin[0].weight.mul_(2)
    check(compiled, twin, torch.randn(16, 64).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        check(torch.compile(model, backend="aot_eager", fullgraph=True), twin, torch.randn(8, 64))


def test_the_default_back_end_knows_gpus() -> None:
    layer = SparseLinear(256, 256, pattern="2:4T")
    assert isinstance(layer.backend.gpu.packed.decide, PlannedSemi)
    decide = layer.backend.gpu.packed.decide
    assert (decide.rows, decide.cols, decide.bias) == (256, 256, True)
    assert not decide.on(torch.device("cpu"), 4096, torch.bfloat16).any
    conv = nn.Conv2d(128, 256, 3)
    sparsify(conv, "4:8T")
    assert conv.backend.gpu is None  # type: ignore[union-attr]


def test_checkpoints_know_nothing_of_it() -> None:
    layer, twin = pair()
    layer(torch.randn(8, 64).bfloat16())
    assert layer.state_dict().keys() == twin.state_dict().keys()
    with torch.no_grad():
        twin.weight.add_(1)
    x = torch.randn(8, 64).bfloat16()
    layer.load_state_dict(twin.state_dict())
    check(layer, twin, x)
