"""Zeros by a mask: the bits of torch.where, whatever lies in the zeroed places; its gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad

from transposable.nn import SparseLinear, functional
from transposable.nn.select import select_, selected
from transposable.train import SRSTE, DenseTail, MaskController, MaskedDecay, Recipe, Static

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
ODD = (0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -3.0)


def numbers(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Of every kind: ordinary ones, both zeros, infinities, NaN, denormals."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    odd = torch.randint(len(ODD) * 3, shape, generator=generator)
    for index, value in enumerate(ODD):
        values[odd == index] = value
    return values.to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = INTEGERS[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


@st.composite
def tensors(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor and a mask of one shape, each of any memory order."""
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    seed, dtype = draw(st.integers(0, 2**31)), draw(st.sampled_from(DTYPES))
    orders = [draw(st.permutations(range(len(shape)))) for _ in range(2)]
    tensor = numbers(seed, tuple(shape[axis] for axis in orders[0]), dtype)
    if draw(st.booleans()):
        tensor = tensor.repeat_interleave(2, -1)[..., ::2]
    generator = torch.Generator().manual_seed(seed + 1)
    mask = torch.rand([shape[axis] for axis in orders[1]], generator=generator) < 0.5

    def back(value: torch.Tensor, order: list[int]) -> torch.Tensor:
        return value.permute([order.index(axis) for axis in range(len(shape))])

    return back(tensor, orders[0]), back(mask, orders[1])


@given(tensors())
def test_selected_has_the_bits_of_where(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    tensor, mask = pair
    before = tensor.clone()
    zero = torch.zeros((), dtype=tensor.dtype)
    assert same_bits(selected(tensor, mask), torch.where(mask, tensor, zero))
    assert same_bits(tensor, before)
    select_(tensor, mask)
    assert same_bits(tensor, torch.where(mask, before, zero))


@given(tensors(), st.sampled_from([SRSTE(0.25), MaskedDecay(3e-4)]))
def test_the_gradient_term_is_the_formula(
    pair: tuple[torch.Tensor, torch.Tensor], recipe: SRSTE | MaskedDecay
) -> None:
    """decay * (1 - S) * W, and nothing of a kept weight, were it infinite or NaN."""
    weight, mask = pair
    gradient = torch.randn(weight.shape, dtype=torch.float64).to(weight.dtype)
    expected = gradient.clone()
    expected.add_(torch.where(mask, 0.0, weight), alpha=recipe.decay)
    before = gradient.clone()
    recipe.before_step(weight, gradient, mask)
    assert same_bits(gradient.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(gradient[mask], before[mask])


def test_static_zeroes_what_the_optimizer_spoilt() -> None:
    weight = torch.tensor([1.0, float("nan"), -float("inf"), -2.0])
    mask = torch.tensor([True, False, False, False])
    version = weight._version
    Static().after_step(weight, mask)
    assert same_bits(weight, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert weight._version > version  # autograd and the controller see that it was written


class Halving(Recipe):
    """A recipe that somebody else wrote."""

    def after_step(self, weight: torch.Tensor, mask: torch.Tensor) -> None:
        weight.mul_(0.5)


def test_a_recipe_is_known_to_change_weights_by_its_method() -> None:
    assert not SRSTE().changes_weight
    assert not DenseTail(SRSTE(), at=3).changes_weight
    assert Static().changes_weight
    assert DenseTail(Static(), at=3).changes_weight
    layer = SparseLinear(8, 8, pattern="2:4T")
    controller = MaskController(layer, Halving(), refresh=100)
    before = layer.weight.detach().clone()
    controller.step()
    assert torch.equal(layer.weight, before / 2)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, forward mode
def test_the_gradients_of_masked_weights() -> None:
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(4, 6) < 0.5

    def function(weight: torch.Tensor) -> torch.Tensor:
        return functional.masked(weight, mask).pow(3)

    assert torch.autograd.gradcheck(function, (weight,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (weight,))
    mapped = torch.func.vmap(functional.masked)(weight.expand(3, 4, 6), mask.expand(3, 4, 6))
    assert torch.equal(mapped[2], torch.where(mask, weight, 0.0))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight, torch.ones_like(weight))
        tangent = forward_ad.unpack_dual(functional.masked(dual, mask)).tangent
        assert torch.equal(tangent, mask.double())


def test_a_gradient_that_is_not_finite_stays_where_it_is_kept() -> None:
    weight = torch.randn(3, requires_grad=True)
    mask = torch.tensor([True, False, False])
    functional.masked(weight, mask).backward(torch.tensor([1.0, float("nan"), float("inf")]))
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("straight_through", [False, True])
def test_other_tracers_see_where(straight_through: bool) -> None:
    """Scripts and exported programs hold no arithmetic on the bits of a float."""
    layer = SparseLinear(8, 8, pattern="2:4T")
    layer.straight_through = straight_through
    x = torch.randn(2, 8)
    exported = torch.export.export(copy.deepcopy(layer), (x,))
    text = str(exported.graph)
    assert "where" in text
    assert "int32" not in text
    assert torch.equal(exported.module()(x), layer(x))
    if not straight_through:  # a custom gradient cannot be traced symbolically
        traced = torch.fx.symbolic_trace(nn.Sequential(layer))
        assert torch.equal(traced(x), layer(x))
