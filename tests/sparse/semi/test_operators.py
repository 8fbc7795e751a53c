"""pack, linear and dgrad as operators: numbers, gradients, torch's checks, one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from tests.sparse.cases import generator, pattern_mask
from tests.sparse.semi.fake_gpu import Calls, gpu
from transposable.errors import DeviceError, MaskError, SparseFormatError
from transposable.sparse.semi import Tuner, dgrad, linear, operators, pack

__all__ = ["gpu"]
FORMATS = ["reference", "cusparselt", "cutlass"]


@pytest.fixture(autouse=True)
def one_tuner(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = Tuner(None)
    monkeypatch.setattr(tuner, "why_unsound", lambda case: None)
    monkeypatch.setattr(operators, "tuner_of", lambda device: tuner)


def tensors(tokens: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    mask = pattern_mask("2:4T", 64, 128)
    weight = torch.randn(64, 128, generator=generator(1)).masked_fill(~mask, float("nan"))
    x = torch.randn(tokens, 128, generator=generator(0))
    bias = torch.randn(64, generator=generator(2))
    return x.bfloat16(), weight.bfloat16(), mask, bias.bfloat16()


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found.double() - wanted.double()).norm() <= 0.01 * wanted.double().norm())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(24, 128), (2, 3, 128), (128,)], ids=str)
def test_numbers_and_gradients(gpu: Calls, format: str, shape: tuple[int, ...]) -> None:
    x, weight, mask, bias = tensors(torch.Size(shape[:-1]).numel())
    x = x.reshape(shape).requires_grad_()
    bias.requires_grad_()
    packed = pack(weight, mask, format)
    y = linear(x, packed, bias)
    dy = torch.randn(y.shape, generator=generator(5)).bfloat16()
    y.backward(dy)
    kept = torch.where(mask, weight, 0.0).double()
    assert close(y, F.linear(x.double(), kept, bias.double()))
    assert x.grad is not None
    assert bias.grad is not None
    assert close(x.grad, dy.double() @ kept)
    assert close(bias.grad, dy.double().reshape(-1, 64).sum(0))
    assert torch.equal(dgrad(dy, packed), x.grad)
    assert linear(x.detach().reshape(-1, 128)[:0], packed).shape == (0, 64)


@pytest.mark.parametrize("format", FORMATS)
def test_one_graph(gpu: Calls, format: str) -> None:
    """The width of what cuSPARSELt packs is not known before it runs."""
    x, weight, mask, bias = tensors()
    x.requires_grad_()

    def step(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        packed = pack(weight, mask, format)
        return linear(x, packed, bias) + linear(2 * x, packed, bias)

    counter = CompileCounterWithBackend("aot_eager")
    y = torch.compile(step, backend=counter, fullgraph=True)(x, weight, bias)
    y.sum().backward()
    assert counter.frame_count == 1
    assert close(y, step(x, weight, bias))
    assert x.grad is not None
    kept = torch.where(mask, weight, 0.0).double()
    assert close(x.grad, 3 * kept.sum(0).expand(24, 128))


def test_opcheck() -> None:
    x, weight, mask, bias = tensors()
    torch.library.opcheck(torch.ops.transposable.semi_pack, (weight, mask, "reference"))
    packed = pack(weight, mask, "reference")
    given = x.requires_grad_(), *packed[:4], bias.requires_grad_(), "reference"
    torch.library.opcheck(torch.ops.transposable.semi_linear, given)
    dy = torch.randn(24, 64).bfloat16()
    arguments = dy, packed.values_t, packed.meta_t, 128, "reference"
    torch.library.opcheck(torch.ops.transposable.semi_dgrad, arguments)


def test_bad_input(gpu: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, mask, _ = tensors()
    packed = pack(weight, mask, "cusparselt")
    wrong: Any
    for wrong in (mask.t(), mask.float(), mask.to("meta")):
        with pytest.raises(MaskError, match="received a mask"):
            pack(weight, wrong, "cusparselt")
    with pytest.raises(SparseFormatError, match="multiples of 16"):
        pack(weight[:, :120], mask[:, :120], "cusparselt")
    with pytest.raises(SparseFormatError, match=r"torch\.float32"):
        pack(weight.float(), mask, "cusparselt")
    for wrong in (x[:, :64], x.float(), torch.ones(()).bfloat16()):
        with pytest.raises(SparseFormatError, match=r"takes \[\.\.\., 128\] of torch.bfloat16"):
            linear(wrong, packed)
    with pytest.raises(SparseFormatError, match="bias"):
        linear(x, packed, torch.ones(128).bfloat16())
    with pytest.raises(SparseFormatError, match=r"\[\.\.\., 64\]"):
        dgrad(x, packed)
    mask[0, :4] = True
    assert linear(x, pack(weight, mask, "reference")).isnan().any()
    gpu.broken = dict.fromkeys(range(4), lambda y: y * 1.1)
    with pytest.raises(DeviceError, match="no algorithm of cusparselt"):
        linear(x, packed)


def test_no_gpu() -> None:
    _, weight, mask, _ = tensors()
    with pytest.raises(DeviceError, match="NVIDIA GPUs"):
        pack(weight, mask)
