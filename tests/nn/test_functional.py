"""The functional forms against dense operators on a masked weight, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from transposable import find_mask
from transposable.nn import SparseLinear, functional

# torch itself scripts its formulas of forward-mode derivatives when the first is taken.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

LARGE = (96, 96)  # above the size from which masking works over bits
SMALL = (8, 12)


def weight_and_mask(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    return weight.requires_grad_(), torch.rand(shape, generator=generator) > 0.5


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("through", [False, True])
def test_masked(shape: tuple[int, ...], dtype: torch.dtype, through: bool) -> None:
    weight, mask = weight_and_mask(shape)
    weight = weight.detach().to(dtype).requires_grad_()
    effective = functional.masked(weight, mask, straight_through=through)
    assert torch.equal(effective, weight * mask)
    assert effective.dtype == dtype
    gradient = torch.randn(shape).to(dtype)
    effective.backward(gradient)
    assert torch.equal(weight.grad, gradient if through else gradient * mask)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_pruned_infinities_leave_no_trace(shape: tuple[int, ...]) -> None:
    weight, mask = weight_and_mask(shape)
    with torch.no_grad():
        weight[~mask] = float("nan")
    gradient = torch.ones(shape, dtype=torch.float64)
    gradient[~mask] = float("inf")
    effective = functional.masked(weight, mask)
    effective.backward(gradient)
    assert effective[~mask].eq(0).all()
    assert effective.isfinite().all()
    assert torch.equal(weight.grad, mask.double())


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_masked_under_every_derivative(shape: tuple[int, ...]) -> None:
    weight, mask = weight_and_mask(shape)

    def ours(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x @ functional.masked(w, mask).t()).square().sum()

    def truth(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x @ torch.where(mask, w, 0.0).t()).square().sum()

    x = torch.randn(3, 2, shape[1], dtype=torch.float64)
    weight = weight.detach()

    def same(transform: Callable[..., torch.Tensor]) -> None:
        torch.testing.assert_close(transform(ours), transform(truth), rtol=1e-12, atol=1e-12)

    same(lambda f: f(weight, x[0]))
    same(lambda f: grad(f)(weight, x[0]))
    same(lambda f: vmap(grad(f), (None, 0))(weight, x))
    same(lambda f: vmap(f, (0, None))(torch.stack([weight, 2 * weight]), x[0]))
    same(lambda f: vmap(grad(f), (0, None))(torch.stack([weight, 2 * weight]), x[0]))
    same(lambda f: jvp(lambda w: f(w, x[0]), (weight,), (weight + 1,))[1])
    same(lambda f: grad(lambda w: grad(f)(w, x[0]).square().sum())(weight))


def test_straight_through_under_transforms() -> None:
    weight, mask = weight_and_mask(LARGE)
    weight = weight.detach()
    x = torch.randn(3, LARGE[1], dtype=torch.float64)

    def loss(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (functional.masked(w, mask, straight_through=True) @ x).sum()

    each = vmap(grad(loss), (None, 0))(weight, x)
    torch.testing.assert_close(each, x[:, None].expand(-1, LARGE[0], -1))
    both = vmap(loss, (0, None))(torch.stack([weight, -weight]), x[0])
    torch.testing.assert_close(both[0], -both[1])


def slow_soft(weight: torch.Tensor, mask: torch.Tensor, m: int) -> torch.Tensor:
    """S-STE's formula, one weight at a time."""
    result = torch.zeros_like(weight)
    cols = weight.shape[1]
    for place in torch.cartesian_prod(*(torch.arange(side) for side in weight.shape)).tolist():
        if not mask[tuple(place)]:
            continue
        start = place[1] // m * m
        group = [
            abs(weight[(place[0], j, *place[2:])].item())
            for j in range(start, min(start + m, cols))
            if not mask[(place[0], j, *place[2:])]
        ]
        value = weight[tuple(place)].item()
        shrunk = max(abs(value) - max(group, default=0.0), 0.0)
        result[tuple(place)] = shrunk if value > 0 else -shrunk
    return result


@pytest.mark.parametrize("shape", [(4, 8), (3, 10), (5, 3), (2, 4, 3), (4, 6, 2, 3)])
@pytest.mark.parametrize("m", [2, 4])
def test_soft_threshold(shape: tuple[int, ...], m: int) -> None:
    weight, mask = weight_and_mask(shape)
    soft = functional.soft_thresholded(weight, mask, m)
    expected = slow_soft(weight.detach(), mask, m)
    torch.testing.assert_close(soft, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(functional.soft_thresholded(weight, mask, m, 1.5), 1.5 * expected)
    gradient = torch.randn(shape, dtype=torch.float64)
    soft.backward(gradient)
    assert torch.equal(weight.grad, gradient)


def test_soft_scale_is_the_least_squares_fit() -> None:
    weight, _ = weight_and_mask((16, 32))
    mask = find_mask(weight.detach(), "2:4").tensor
    soft = functional.soft_thresholded(weight, mask, 4).detach()
    fit = torch.linalg.lstsq(soft.reshape(-1, 1), weight.detach().reshape(-1, 1)).solution
    scale = functional.soft_scale(weight, mask, 4)
    assert scale.dtype == torch.float32
    torch.testing.assert_close(scale.double(), fit.squeeze(), rtol=1e-6, atol=0)
    nothing = functional.soft_scale(torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool), 4)
    assert nothing == 1


def test_soft_threshold_is_continuous_where_the_mask_changes() -> None:
    steps = torch.linspace(-1, 1, 201, dtype=torch.float64)
    values = []
    for step in steps:
        weight = torch.tensor([[1.0, 1.0, 0.5, 0.2]], dtype=torch.float64)
        weight[0, 1] += step  # from the largest to the smallest of its group
        mask = find_mask(weight, "2:4").tensor
        values.append(functional.soft_thresholded(weight, mask, 4))
    assert torch.stack(values).diff(dim=0).abs().max() < 0.0101


FORMS = {
    "linear": (functional.linear, F.linear, (3, 12), (8, 12), {}),
    "linear, 3-D": (functional.linear, F.linear, (2, 3, 12), (8, 12), {}),
    "linear, large": (functional.linear, F.linear, (2, 96), (96, 96), {}),
    "linear, empty batch": (functional.linear, F.linear, (0, 12), (8, 12), {}),
    "conv1d": (functional.conv1d, F.conv1d, (2, 4, 7), (6, 4, 3), {"stride": 2, "padding": 1}),
    "conv1d, same": (functional.conv1d, F.conv1d, (4, 7), (6, 4, 3), {"padding": "same"}),
    "conv2d": (functional.conv2d, F.conv2d, (2, 4, 5, 6), (6, 4, 3, 2), {"padding": (1, 0)}),
    "conv2d, groups": (
        functional.conv2d,
        F.conv2d,
        (2, 8, 5, 5),
        (6, 4, 3, 3),
        {"groups": 2, "dilation": 2},
    ),
}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_forms(form: str, biased: bool) -> None:
    ours, dense, shape, weights, options = FORMS[form]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight, mask = weight_and_mask(weights)
    bias = torch.randn(weights[0], dtype=torch.float64, requires_grad=True) if biased else None
    expected = dense(x, weight.detach() * mask, bias, **options)
    torch.testing.assert_close(ours(x, weight, mask, bias, **options), expected, rtol=0, atol=0)
    through = ours(x, weight, mask, bias, straight_through=True, **options)
    torch.testing.assert_close(through, expected, rtol=0, atol=0)
    inputs = (x, weight, bias) if biased else (x, weight)
    if weight.numel() < 1000 and x.numel():
        assert torch.autograd.gradcheck(
            lambda x, w, b=None: ours(x, w, mask, b, **options), inputs, check_forward_ad=True
        )
        assert torch.autograd.gradgradcheck(
            lambda x, w, b=None: ours(x, w, mask, b, **options), inputs
        )


def test_functional_call_and_per_sample_gradients_of_a_layer() -> None:
    layer = SparseLinear(16, 8, pattern="2:4T", dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    buffers = dict(layer.named_buffers())
    x = torch.randn(5, 16, dtype=torch.float64)

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, (parameters, buffers), (x,)).square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x)
    loss(dict(layer.named_parameters()), x).backward()
    torch.testing.assert_close(each["weight"].sum(0), layer.weight.grad)
    none = {**buffers, "mask": torch.zeros_like(layer.mask)}
    torch.testing.assert_close(
        functional_call(layer, (parameters, none), (x,)), layer.bias.expand(5, -1)
    )
