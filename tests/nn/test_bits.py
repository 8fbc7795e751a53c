"""Masking over bits is torch.where for every float, shape, stride and special number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transposable.nn import bits

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SPECIAL = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1.0, -1.5, 1e-40, 1e30)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    assert a.dtype == b.dtype
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.tuples(st.sampled_from(SPECIAL), st.booleans()), max_size=70))
def test_every_number(dtype: torch.dtype, pairs: list[tuple[float, bool]]) -> None:
    tensor = torch.tensor([number for number, _ in pairs], dtype=torch.float64).to(dtype)
    mask = torch.tensor([flag for _, flag in pairs], dtype=torch.bool)
    before = tensor.clone()
    assert same_bits(bits.kept(tensor, mask), torch.where(mask, tensor, 0.0))
    assert same_bits(bits.pruned(tensor, mask), torch.where(mask, 0.0, tensor))
    assert same_bits(tensor, before)
    bits.keep_(tensor, mask)
    assert same_bits(tensor, torch.where(mask, before, 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,), (5, 7), (64, 48), (8, 16, 3, 3)])
def test_shapes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor, mask = torch.randn(shape).to(dtype), torch.rand(shape) > 0.5
    assert same_bits(bits.kept(tensor, mask), torch.where(mask, tensor, 0.0))


def test_strides() -> None:
    tensor, mask = torch.randn(16, 8, 4, 6), torch.rand(16, 8, 4, 6) > 0.5
    for change in (
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t.permute(3, 1, 0, 2),
        lambda t: t[::2, :, 1:3],
        lambda t: t[:1].expand(4, -1, -1, -1),
    ):
        a, b = change(tensor), change(mask)
        assert same_bits(bits.kept(a, b), torch.where(b, a, 0.0))
    last = tensor.to(memory_format=torch.channels_last)
    own = mask.to(memory_format=torch.channels_last)
    assert bits.kept(last, own).stride() == last.stride()
    part = tensor.clone()[:, ::2]
    expected = torch.where(mask[:, ::2], part, 0.0)
    bits.keep_(part, mask[:, ::2])
    assert same_bits(part, expected)


def test_tensors_without_such_bits() -> None:
    mask = torch.tensor([True, False])
    complex_ = torch.tensor([1 + 1j, 2.0])
    assert torch.equal(bits.kept(complex_, mask), torch.tensor([1 + 1j, 0]))
    bits.keep_(complex_, mask)
    assert torch.equal(complex_, torch.tensor([1 + 1j, 0]))
    assert bits.kept(torch.empty(2, device="meta"), mask.to("meta")).is_meta


def test_a_parameter_is_zeroed_in_place_and_autograd_is_told() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    with torch.no_grad():
        bits.keep_(weight, torch.tensor([True, False]))
    assert weight.tolist() == [1.0, 0.0]
    assert weight._version == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_has_operators_that_others_read() -> None:
    mask = torch.tensor([True, False])
    traced = torch.jit.trace(lambda t: bits.kept(t, mask), torch.ones(2))
    assert "where" in str(traced.graph)
    assert traced(torch.tensor([float("nan"), 2.0])).isnan().tolist() == [True, False]
