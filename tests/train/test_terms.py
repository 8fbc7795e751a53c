"""What recipes do to gradients and weights, bit by bit, whatever lies in the other places."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from transposable.nn import SparseLinear
from transposable.train import SRSTE, MaskController, MaskedDecay, Recipe, Static

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


def test_a_recipe_that_overrides_after_step_is_called() -> None:
    layer = SparseLinear(8, 8, pattern="2:4T")
    controller = MaskController(layer, Halving(), refresh=100)
    before = layer.weight.detach().clone()
    controller.step()
    assert torch.equal(layer.weight, before / 2)
