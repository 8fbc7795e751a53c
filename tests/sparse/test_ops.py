"""The operators against a dense masked layer in float64, and as torch's own checks see them."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.counted_calls import counted_calls
from tests.sparse.cases import PATTERNS, generator, pattern_mask, random_mask
from transposable import Pattern
from transposable.errors import DeviceError, LayerError, MaskError, SparseFormatError
from transposable.sparse import Choice, PackedWeight, nm_linear
from transposable.sparse.handles import find_packed

Tensors = dict[str, torch.Tensor]


def inputs(
    shape: tuple[int, ...], rows: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensors:
    random = generator(seed)
    return {
        "x": torch.randn(shape, generator=random).to(dtype).requires_grad_(),
        "weight": torch.randn(rows, shape[-1], generator=random).to(dtype).requires_grad_(),
        "bias": torch.randn(rows, generator=random).to(dtype).requires_grad_(),
    }


def expected(given: Tensors, mask: torch.Tensor, through: bool, weigh: torch.Tensor) -> Tensors:
    """y and gradients of the sum of y * weigh, all in float64."""
    twins = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    kept = torch.where(mask, twins["weight"], 0.0)
    if through:
        kept = twins["weight"] + (kept - twins["weight"]).detach()
    y = F.linear(twins["x"], kept, twins["bias"])
    (y * weigh.double()).sum().backward()
    return {"y": y.detach(), **{name: t.grad for name, t in twins.items() if t.grad is not None}}


def check(
    given: Tensors,
    mask: torch.Tensor,
    packed: PackedWeight,
    through: bool = False,
    **tolerance: float,
) -> None:
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-4}
    y = nm_linear(
        given["x"], given["weight"], mask, given["bias"], packed.handle, straight_through=through
    )
    weigh = torch.randn(y.shape, generator=generator(9)).to(y.dtype)
    wanted = expected(given, mask, through, weigh)
    for tensor in given.values():
        tensor.grad = None
    (y * weigh).sum().backward()
    assert y.dtype == given["x"].dtype
    torch.testing.assert_close(y.detach().double(), wanted["y"], **tolerance)
    for name, tensor in given.items():
        assert tensor.grad is not None
        assert tensor.grad.dtype == tensor.dtype
        torch.testing.assert_close(tensor.grad.double(), wanted[name], **tolerance)


ALL = [Choice(*which) for which in itertools.product([True, False], repeat=3)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("through", [False, True])
def test_gradients(pattern: str, through: bool) -> None:
    """The kernels know no float64, in which gradcheck works: so float64 gradients of torch."""
    mask = pattern_mask(pattern, 40, 56)
    packed = PackedWeight(Pattern.parse(pattern))
    check(inputs((3, 7, 56), 40), mask, packed, through)


@pytest.mark.parametrize("choice", ALL)
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_runs_sparse(choice: Choice, through: bool, dtype: torch.dtype) -> None:
    asked = []

    def decide(tokens: int, dtype: torch.dtype) -> Choice:
        asked.append(tokens)
        return choice

    mask = pattern_mask("2:4T", 40, 56)
    packed = PackedWeight(Pattern.parse("2:4T"), decide=decide)
    tolerance = {"rtol": 0.03, "atol": 0.1} if dtype == torch.bfloat16 else {}
    with counted_calls() as calls:
        check(inputs((3, 7, 56), 40, dtype=dtype), mask, packed, through, **tolerance)
    assert set(asked) == {21}
    assert calls["matmul"] == choice.forward + choice.input_gradient
    assert calls["weight_gradient"] == (choice.weight_gradient and not through)
    assert calls["fill"] == calls["matmul"]


@pytest.mark.parametrize("shape", [(5,), (0, 5), (1, 5), (2, 0, 5), (2, 3, 4, 5), (0,), (3, 0)])
@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize("choice", [Choice(), Choice(False, False, False)])
@pytest.mark.parametrize("through", [False, True])
def test_shapes(shape: tuple[int, ...], rows: int, choice: Choice, through: bool) -> None:
    mask = random_mask(rows, shape[-1], 0)
    check(inputs(shape, rows), mask, PackedWeight(decide=lambda tokens, dtype: choice), through)


@pytest.mark.parametrize("needed", [*itertools.product([False, True], repeat=3)])
def test_only_what_is_needed(needed: tuple[bool, ...]) -> None:
    given = inputs((4, 24), 16)
    for tensor, needs in zip(given.values(), needed, strict=True):
        tensor.requires_grad_(needs)
    mask = pattern_mask("2:4T", 16, 24)
    packed = PackedWeight()
    with counted_calls() as calls:
        y = nm_linear(given["x"], given["weight"], mask, given["bias"], packed.handle)
        assert y.requires_grad == any(needed)
        if any(needed):
            y.sum().backward()
    assert calls["matmul"] == 1 + needed[0]
    assert calls["weight_gradient"] == needed[1]
    assert [tensor.grad is not None for tensor in given.values()] == list(needed)
    assert (packed.backward is not None) == needed[0]


def test_no_bias_and_other_strides() -> None:
    given = inputs((6, 24), 16)
    mask = pattern_mask("2:4T", 16, 24)
    packed = PackedWeight()
    stored = given["weight"].detach().t().contiguous().requires_grad_()
    y = nm_linear(given["x"], stored.t(), mask.t().contiguous().t(), None, packed.handle)
    again = nm_linear(given["x"], given["weight"], mask, None, packed.handle)
    assert torch.equal(y, again)
    weigh = torch.randn(16, 6, generator=generator(3)).t()
    y.backward(weigh)
    again.backward(weigh)
    assert given["weight"].grad is not None
    assert torch.equal(stored.grad.t(), given["weight"].grad)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 24), (2, 3, 24), (24,), (0, 24)])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(through: bool, with_bias: bool, shape: tuple[int, ...], grad: bool) -> None:
    given = inputs(shape, 16)
    if not grad:
        given = {name: tensor.detach() for name, tensor in given.items()}
    mask = pattern_mask("2:4T", 16, 24)
    bias = given["bias"] if with_bias else None
    packed = PackedWeight()
    torch.library.opcheck(
        torch.ops.transposable.nm_linear,
        (given["x"], given["weight"], mask, bias, packed.tag, through),
    )


def test_opcheck_of_the_gradients() -> None:
    given = {name: tensor.detach() for name, tensor in inputs((3, 24), 16).items()}
    mask, packed = pattern_mask("2:4T", 16, 24), PackedWeight()
    ops = torch.ops.transposable
    for shape in ((3, 16), (2, 3, 16), (16,)):
        dy = torch.randn(shape, generator=generator(1))
        torch.library.opcheck(ops.nm_input_gradient, (dy, given["weight"], mask, packed.tag))
        x = torch.randn(*shape[:-1], 24, generator=generator(2))
        torch.library.opcheck(ops.nm_weight_gradient, (x, dy, mask, packed.tag))


@pytest.mark.parametrize("choice", [Choice(), Choice(False, False, False)])
@pytest.mark.parametrize("through", [False, True])
def test_autocast(choice: Choice, through: bool) -> None:
    """x is rounded, the weight is not: one packing serves all micro-batches."""
    given = inputs((5, 24), 16)
    mask = pattern_mask("2:4T", 16, 24)
    packed = PackedWeight(decide=lambda tokens, dtype: choice)
    with counted_calls() as calls:
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                y = nm_linear(
                    given["x"], given["weight"], mask, given["bias"], packed.handle, through
                )
            assert y.dtype == torch.bfloat16
            y.sum().backward()
    assert calls["fill"] == 2 * choice.forward
    wanted = expected(given, mask, through, torch.ones(5, 16))
    torch.testing.assert_close(y.double(), wanted["y"], rtol=0.02, atol=0.05)
    for name, tensor in given.items():
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32
        torch.testing.assert_close(tensor.grad.double(), 3 * wanted[name], rtol=0.05, atol=0.2)


def test_a_bias_gradient_under_autocast_is_summed_in_its_own_dtype() -> None:
    given = inputs((1001, 24), 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = nm_linear(given["x"], given["weight"], pattern_mask("2:4T", 16, 24), given["bias"])
    y.backward(torch.ones_like(y))
    assert given["bias"].grad.eq(1001).all(), "which bfloat16 does not have"


@pytest.mark.filterwarnings("ignore:.*not a double precision:UserWarning")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("through", [False, True])
def test_gradcheck(pattern: str, through: bool) -> None:
    """The layer is linear in each of its inputs, so that differences over a step of 1 are exact up
    to float32's rounding. With ``straight_through`` that is the gradient of the inputs only.
    """
    mask = pattern_mask(pattern, 16, 24)
    packed = PackedWeight(Pattern.parse(pattern))
    given = inputs((3, 24), 16)
    x, weight, bias = given.values()
    if through:
        weight = weight.detach()

    def layer(*changing: torch.Tensor) -> torch.Tensor:
        x, weight, bias = changing
        return nm_linear(x, weight, mask, bias, packed.handle, through)

    torch.autograd.gradcheck(layer, (x, weight, bias), eps=1.0, atol=1e-4, rtol=1e-4)


def test_a_second_derivative_is_an_error() -> None:
    given = inputs((5, 24), 16)
    mask = pattern_mask("2:4T", 16, 24)
    y = nm_linear(given["x"], given["weight"], mask)
    for name in ("x", "weight"):
        (first,) = torch.autograd.grad(y.square().sum(), given[name], create_graph=True)
        with pytest.raises(LayerError, match="which they do not have; run the layer dense-masked"):
            first.square().sum().backward()


@pytest.mark.parametrize("handle", [0, 10**9, torch.tensor(0)])
def test_handles_that_keep_nothing(handle: Any) -> None:
    given = inputs((5, 24), 16)
    mask = pattern_mask("2:4T", 16, 24)
    with counted_calls() as calls:
        for _ in range(2):
            y = nm_linear(given["x"], given["weight"], mask, given["bias"], handle)
    assert calls["index"] == 2
    wanted = expected(given, mask, False, torch.ones(5, 16))
    torch.testing.assert_close(y.detach().double(), wanted["y"], rtol=1e-5, atol=1e-5)


def test_gradients_after_the_packed_weight_has_died() -> None:
    given = inputs((5, 24), 16)
    mask = pattern_mask("2:4T", 16, 24)
    packed = PackedWeight()
    handle = packed.handle
    with counted_calls() as calls:
        y = nm_linear(given["x"], given["weight"], mask, None, handle)
        del packed
        y.sum().backward()
        assert calls["index"] == 2  # the graph has kept what was packed
    del y
    gc.collect()
    assert find_packed(handle) is None


def test_a_weight_written_between_the_passes_is_an_error() -> None:
    """As for F.linear: the gradient would be that of another weight."""
    mask = pattern_mask("2:4T", 16, 24)
    for written in ("weight", "mask"):
        given = inputs((5, 24), 16)
        kept, packed = mask.clone(), PackedWeight()
        y = nm_linear(given["x"], given["weight"], kept, None, packed.handle)
        with torch.no_grad():
            (given["weight"] if written == "weight" else kept).zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_results_are_reproducible() -> None:
    mask = pattern_mask("4:8T", 64, 96)
    found = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        given = inputs((101, 96), 64)
        y = nm_linear(given["x"], given["weight"], mask, None, PackedWeight().handle)
        y.square().sum().backward()
        found.append([y.detach(), given["x"].grad, given["weight"].grad])
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


def test_bad_input() -> None:
    x, weight, mask = torch.ones(2, 8), torch.ones(4, 8), random_mask(4, 8, 0)
    with pytest.raises(MaskError, match=r"mask \(8, 4\) of torch.bool for a weight \(4, 8\)"):
        nm_linear(x, weight, mask.t())
    with pytest.raises(MaskError, match=r"torch\.float32"):
        nm_linear(x, weight, mask.float())
    with pytest.raises(SparseFormatError, match=r"x \(2, 7\), weight \(4, 8\) and bias None"):
        nm_linear(x[:, :7], weight, mask)
    with pytest.raises(SparseFormatError, match=r"bias \(8,\)"):
        nm_linear(x, weight, mask, torch.ones(8))
    with pytest.raises(SparseFormatError, match=r"x \(\)"):
        nm_linear(torch.ones(()), weight, mask)
    for dtype in (torch.float64, torch.float16, torch.int32):
        with pytest.raises(SparseFormatError, match=f"x of {dtype}"):
            nm_linear(x.to(dtype), weight, mask)
    with pytest.raises(SparseFormatError, match=r"weight of torch\.int64"):
        nm_linear(x, weight.long(), mask)
    for name in ("x", "weight", "mask"):
        tensors = {"x": x, "weight": weight, "mask": mask}
        tensors[name] = tensors[name].to("meta")
        with pytest.raises(DeviceError, match=f"{name} is on meta"):
            nm_linear(**tensors)
    with torch.autocast("cpu", torch.float16), pytest.raises(SparseFormatError, match="float16"):
        nm_linear(x, weight, mask)
