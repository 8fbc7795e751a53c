"""Convolutions on kept weights against F.conv2d and its gradients in float64."""

from __future__ import annotations

import gc
import itertools
import threading
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.counted_calls import counted_calls
from tests.sparse.cases import generator
from transposable import Pattern, find_mask
from transposable.errors import DeviceError, LayerError, MaskError, SparseFormatError
from transposable.layout import Layout
from transposable.sparse import Blocking, Choice, PackedWeight, Stream, nm_conv2d
from transposable.sparse.handles import find_packed
from transposable.sparse.images import Window, convolve, convolve_weight_gradient
from transposable.sparse.packed import matrix

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")

DENSE = Choice(False, False, False)
ALL = [Choice(*which) for which in itertools.product([True, False], repeat=3)]
EXACT = {"rtol": 1e-5, "atol": 2e-4}
ROUGH = {"rtol": 0.03, "atol": 0.25}


def last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def inputs(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    out: int = 10,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    formats: tuple[bool, bool] = (False, False),
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """x, weight and bias, and an unstructured mask; what is pruned is NaN."""
    random = generator(seed)
    x = torch.randn(shape, generator=random).to(dtype)
    weight = torch.randn(out, shape[-3], *kernel, generator=random).to(dtype)
    mask = torch.rand(weight.shape, generator=random) < 0.5
    weight[~mask] = float("nan")
    bias = torch.randn(out, generator=random).to(dtype)
    if formats[0]:
        x = last(x)
    if formats[1]:
        weight, mask = last(weight), last(mask)
    return {
        name: t.requires_grad_() for name, t in (("x", x), ("weight", weight), ("bias", bias))
    }, mask


def check(
    given: dict[str, torch.Tensor],
    mask: torch.Tensor,
    packed: PackedWeight | None = None,
    through: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Output and gradients against those in float64; returns the output."""
    twins = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    kept = torch.where(mask, twins["weight"], 0.0)
    if through:
        kept = kept.detach().requires_grad_()
    wanted = F.conv2d(twins["x"], kept, twins.get("bias"), **options)
    random = generator(9)
    weigh = torch.randn(wanted.shape, generator=random, dtype=torch.float64)
    weigh = weigh.to(given["x"].dtype).double()
    wanted.backward(weigh)
    gradients = {name: t.grad for name, t in twins.items()}
    if through:
        gradients["weight"] = kept.grad
    handle = 0 if packed is None else packed.handle
    y = nm_conv2d(given["x"], given["weight"], mask, given.get("bias"), handle, through, **options)
    assert y.dtype == given["x"].dtype
    tolerance = ROUGH if y.dtype == torch.bfloat16 else EXACT
    torch.testing.assert_close(y.detach().double(), wanted.detach(), **tolerance)
    for tensor in given.values():
        tensor.grad = None
    y.backward(weigh.to(y.dtype))
    for name, tensor in given.items():
        assert tensor.grad.dtype == tensor.dtype
        torch.testing.assert_close(tensor.grad.double(), gradients[name], **tolerance)
    return y


KERNELS = [(1, 1), (2, 2), (3, 3), (5, 5), (3, 1), (2, 5)]
PADDINGS = [0, 1, (3, 2), "same", "valid"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_geometries(kernel: tuple[int, int], padding: Any, channels_last: bool) -> None:
    """Every stride and dilation; padding wider than the kernel, images of odd sizes."""
    for stride, dilation in itertools.product([1, 2, 3, (2, 1)], [1, 2, (1, 2)]):
        if padding == "same" and stride != 1:
            continue
        given, mask = inputs((2, 5, 11, 13), kernel, formats=(channels_last, channels_last))
        check(given, mask, stride=stride, padding=padding, dilation=dilation)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 9), (9, 1), (4, 4), (7, 7), (16, 16), (5, 50), (3, 97)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_sizes(batch: int, size: tuple[int, int], channels_last: bool) -> None:
    """Panels that hold part of a row, of an image, or several images."""
    for kernel, channels, out in (((1, 1), 17, 33), ((3, 3), 1, 1), ((3, 3), 19, 8)):
        given, mask = inputs(
            (batch, channels, *size), kernel, out, formats=(channels_last, channels_last)
        )
        check(given, mask, padding=kernel[0] // 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("choice", ALL)
@pytest.mark.parametrize("through", [False, True])
def test_what_runs_sparse(choice: Choice, dtype: torch.dtype, through: bool) -> None:
    asked = []

    def decide(tokens: int, dtype: torch.dtype) -> Choice:
        asked.append(tokens)
        return choice

    given, mask = inputs((2, 6, 8, 9), (3, 3), dtype=dtype)
    with counted_calls() as calls:
        check(given, mask, PackedWeight(decide=decide), through, padding=1)
    assert set(asked) == {2 * 8 * 9}
    assert calls["conv2d"] == calls["fill"] == choice.forward + choice.input_gradient
    assert calls["conv2d_weight_gradient"] == (choice.weight_gradient and not through)


def test_the_input_gradient_of_a_stride_is_dense() -> None:
    given, mask = inputs((2, 6, 8, 9), (3, 3))
    with counted_calls() as calls:
        check(given, mask, stride=2)
    assert calls["conv2d"] == calls["conv2d_weight_gradient"] == 1


FORMATS = list(itertools.product([False, True], repeat=2))


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("choice", [Choice(), DENSE])
def test_the_output_lies_as_that_of_torch(formats: tuple[bool, bool], choice: Choice) -> None:
    given, mask = inputs((2, 6, 8, 9), (3, 3), formats=formats)
    y = check(given, mask, PackedWeight(decide=lambda tokens, dtype: choice), padding=1)
    other = F.conv2d(given["x"], given["weight"], padding=1)
    assert y.stride() == other.stride()


VIEWS = {
    "part": lambda: torch.randn(2, 8, 9, 11, generator=generator(1))[:, 2:7, 1:8, 2:10],
    "every other pixel": lambda: torch.randn(2, 5, 7, 16, generator=generator(1))[..., ::2],
    "every other row": lambda: torch.randn(2, 5, 14, 8, generator=generator(1))[:, :, ::2],
    "part, channels last": lambda: last(torch.randn(2, 9, 9, 9, generator=generator(1)))[
        :, 2:7, 1:8, :8
    ],
    "transposed": lambda: torch.randn(2, 5, 8, 7, generator=generator(1)).transpose(2, 3),
    "one image for all": lambda: torch.randn(1, 5, 7, 8, generator=generator(1)).expand(2, 5, 7, 8),
    "one number": lambda: torch.tensor(1.5).expand(2, 5, 7, 8),
    "flipped dimensions": lambda: torch.randn(8, 7, 5, 2, generator=generator(1)).permute(
        3, 2, 1, 0
    ),
}


@pytest.mark.parametrize("view", VIEWS)
def test_images_that_are_not_contiguous(view: str) -> None:
    """Also as the gradient of the output."""
    x = VIEWS[view]()
    given, mask = inputs((2, 5, 7, 8), (3, 3), 5)
    weight = torch.where(mask, given["weight"], 0.0).detach()
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    torch.testing.assert_close(nm_conv2d(x, weight, mask, padding=1).double(), wanted, **EXACT)
    twin = given["x"].detach().double().requires_grad_()
    F.conv2d(twin, weight.double(), padding=1).backward(x.double())
    weight.requires_grad_()
    nm_conv2d(given["x"], weight, mask, padding=1).backward(x)
    torch.testing.assert_close(given["x"].grad.double(), twin.grad, **EXACT)


@pytest.mark.parametrize("pattern", ["1:4T", "2:4T", "4:8T", "2:8T", "8:16T", "2:4", "50%"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_patterns(pattern: str, channels_last: bool) -> None:
    """Channels that are no multiple of the tile; the blocks that the pattern asks for."""
    given, _ = inputs((2, 37, 6, 7), (3, 3), 43, formats=(channels_last, channels_last))
    scores = torch.randn(given["weight"].shape, generator=generator(2))
    mask = find_mask(scores, pattern, layout=Layout("conv", 1)).tensor
    given["weight"] = scores.clone().requires_grad_()
    check(given, mask, PackedWeight(Pattern.parse(pattern)), padding=1)


def test_an_image_without_a_batch() -> None:
    given, mask = inputs((5, 8, 9), (3, 3))
    assert check(given, mask, padding=1).shape == (10, 8, 9)


def test_without_a_bias() -> None:
    given, mask = inputs((2, 5, 8, 9), (3, 3))
    del given["bias"]
    check(given, mask)


@pytest.mark.parametrize("needed", [*itertools.product([False, True], repeat=3)])
def test_only_what_is_needed(needed: tuple[bool, ...]) -> None:
    given, mask = inputs((2, 5, 8, 9), (3, 3))
    for tensor, needs in zip(given.values(), needed, strict=True):
        tensor.requires_grad_(needs)
    packed = PackedWeight()
    with counted_calls() as calls:
        y = nm_conv2d(given["x"], given["weight"], mask, given["bias"], packed.tag)
        if any(needed):
            y.sum().backward()
    assert calls["conv2d"] == 1 + needed[0]
    assert calls["conv2d_weight_gradient"] == needed[1]
    assert [tensor.grad is not None for tensor in given.values()] == list(needed)
    assert (packed.backward is not None) == needed[0]


def test_pruned_inputs_are_not_multiplied() -> None:
    x = torch.full((1, 2, 3, 3), float("inf"))
    x[:, 1] = 1.0
    mask = torch.tensor([False, True]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
    y = nm_conv2d(x, torch.ones(1, 2, 3, 3), mask, padding=1)
    assert y.flatten().tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("channels_last", [False, True])
def test_threads_and_repeats_give_the_same_bits(threads: int, channels_last: bool) -> None:
    given, mask = inputs((5, 24, 14, 15), (3, 3), 40, formats=(channels_last, channels_last))
    weight = torch.where(mask, given["weight"], 0.0).detach().requires_grad_()

    def run() -> list[torch.Tensor]:
        given["x"].grad = weight.grad = None
        y = nm_conv2d(given["x"], weight, mask, padding=1)
        y.square().sum().backward()
        return [y.detach(), given["x"].grad, weight.grad]

    expected = run()
    torch.set_num_threads(threads)
    for _ in range(2):
        for one, other in zip(run(), expected, strict=True):
            assert torch.equal(one, other)


def test_two_threads_at_once() -> None:
    given, mask = inputs((3, 20, 14, 15), (3, 3), 24)
    weight, packed = torch.where(mask, given["weight"], 0.0).detach(), PackedWeight()
    x = given["x"].detach()
    expected = nm_conv2d(x, weight, mask, padding=1)
    wrong = []

    def work() -> None:
        for _ in range(20):
            if not torch.equal(nm_conv2d(x, weight, mask, None, packed.tag, padding=1), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


CHANGES = {
    "in place": lambda weight, mask: weight.mul_(2),
    "data": lambda weight, mask: weight.data.mul_(2),
    "a few of the data": lambda weight, mask: weight.data[3].mul_(2),
    "mask": lambda weight, mask: mask.copy_(mask.roll(1, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_changes_are_seen(change: str, channels_last: bool, kernel: tuple[int, int]) -> None:
    x = torch.randn(1, 40, 5, 6, generator=generator(0))
    weight = torch.randn(24, 40, *kernel, generator=generator(1))
    mask = torch.rand(weight.shape, generator=generator(2)) < 0.5
    if channels_last:
        weight, mask = last(weight), last(mask)
    packed = PackedWeight()
    for _ in range(2):
        found = nm_conv2d(x, weight, mask, None, packed.tag)
        wanted = F.conv2d(x.double(), torch.where(mask, weight, 0.0).double())
        torch.testing.assert_close(found.double(), wanted, **EXACT)
        CHANGES[change](weight, mask)
    with counted_calls() as calls:
        nm_conv2d(x, weight, mask, None, packed.tag)
        nm_conv2d(x, weight, mask, None, packed.tag)
    assert calls["fill"] == 1
    assert calls["conv2d"] == 2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 3)])
def test_the_matrix_of_a_kernel(channels_last: bool, kernel: tuple[int, int]) -> None:
    weight = torch.randn(4, 6, *kernel)
    weight = last(weight) if channels_last else weight
    taps = list(itertools.product(range(kernel[0]), range(kernel[1])))
    wanted = torch.cat([weight[:, :, i, j] for i, j in taps], 1)
    assert torch.equal(matrix(weight), wanted)
    wanted = torch.cat([weight[:, :, i, j].t() for i, j in taps], 1)
    assert torch.equal(matrix(weight, transposed=True), wanted)
    shares = matrix(weight).data_ptr() == weight.data_ptr()
    assert shares == (channels_last or kernel == (1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_native_code_does_what_its_twin_does(
    request: pytest.FixtureRequest, dtype: torch.dtype, channels_last: bool
) -> None:
    given, mask = inputs((2, 5, 8, 9), (3, 2), dtype=dtype)
    x, weight = given["x"].detach(), torch.where(mask, given["weight"], 0.0).detach()
    x = last(x) if channels_last else x
    dy = torch.randn(2, 10, 5, 9, generator=generator(3)).to(dtype)
    window = Window((3, 2), (2, 1), (2, 1), (1, 2))
    size = window.output(8, 9)
    stream = Stream.build(matrix(mask), Blocking(4, 8), dtype)
    stream.fill(matrix(weight))
    bias = given["bias"].detach()

    def both() -> list[torch.Tensor]:
        return [
            convolve(stream, x, bias, window, size, channels_last),
            convolve_weight_gradient(stream, x, dy, window),
        ]

    found = both()
    request.getfixturevalue("twins")
    for one, other in zip(found, both(), strict=True):
        torch.testing.assert_close(one, other, **(ROUGH if dtype == torch.bfloat16 else EXACT))


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("choice", [Choice(), DENSE])
def test_operators_as_torch_sees_them(
    through: bool, formats: tuple[bool, bool], choice: Choice
) -> None:
    given, mask = inputs((2, 5, 8, 9), (3, 3), formats=formats)
    weight = torch.where(mask, given["weight"], 0.0).detach().requires_grad_()
    packed = PackedWeight(decide=lambda tokens, dtype: choice)
    numbers = [1, 1], [1, 1], [1, 1]
    sample = given["x"], weight, mask, given["bias"], packed.tag, through, *numbers
    torch.library.opcheck(torch.ops.transposable.nm_conv2d.default, sample)


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("choice", [Choice(), DENSE])
def test_gradients_as_torch_sees_them(formats: tuple[bool, bool], choice: Choice) -> None:
    given, mask = inputs((2, 5, 8, 9), (3, 3), formats=formats)
    weight = torch.where(mask, given["weight"], 0.0).detach()
    packed = PackedWeight(decide=lambda tokens, dtype: choice)
    numbers = [1, 1], [1, 1], [1, 1]
    dy = torch.randn(2, 10, 8, 9)
    any_last = any(formats)
    torch.library.opcheck(
        torch.ops.transposable.nm_conv2d_input_gradient.default,
        (dy, weight, mask, packed.tag, [8, 9], *numbers, any_last),
    )
    torch.library.opcheck(
        torch.ops.transposable.nm_conv2d_weight_gradient.default,
        (given["x"].detach(), dy, mask, packed.tag, *numbers, any_last),
    )


@pytest.mark.parametrize("formats", [(False, False), (True, True)])
def test_compiled(formats: tuple[bool, bool]) -> None:
    given, mask = inputs((2, 5, 8, 9), (3, 3), formats=formats)
    weight = torch.where(mask, given["weight"], 0.0).detach().requires_grad_()
    packed = PackedWeight()

    def loss(x: torch.Tensor) -> torch.Tensor:
        y = nm_conv2d(x, weight, mask, given["bias"], packed.tag, padding="same")
        return y.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = []
    for run in (loss, compiled):
        given["x"].grad = weight.grad = None
        value = run(given["x"])
        value.backward()
        found.append([value.detach(), given["x"].grad, weight.grad])
    torch._dynamo.reset()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast() -> None:
    given, mask = inputs((2, 5, 8, 9), (3, 3))
    weight = torch.where(mask, given["weight"], 0.0).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = nm_conv2d(given["x"], weight, mask)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.conv2d(given["x"], weight), rtol=0.03, atol=0.1)


def test_a_second_derivative_is_an_error() -> None:
    given, mask = inputs((2, 5, 8, 9), (3, 3))
    y = nm_conv2d(given["x"], given["weight"], mask)
    (dx,) = torch.autograd.grad(y.nan_to_num().sum(), given["x"], create_graph=True)
    with pytest.raises(LayerError, match="DENSE_MASKED"):
        dx.sum().backward()


def test_what_is_packed_lives_as_long_as_a_graph() -> None:
    given, mask = inputs((2, 5, 8, 9), (3, 3))
    packed = PackedWeight()
    handle = packed.handle
    y = nm_conv2d(given["x"], given["weight"], mask, None, packed.tag)
    del packed
    gc.collect()
    assert find_packed(handle) is not None
    y.sum().backward()
    del y
    gc.collect()
    assert find_packed(handle) is None


X, W, M = torch.zeros(2, 5, 8, 9), torch.zeros(4, 5, 3, 3), torch.ones(4, 5, 3, 3, dtype=torch.bool)
WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "channels": ((X[:, :4], W, M), {}, SparseFormatError, r"\(2, 4, 8, 9\)"),
    "matrix": ((X[0, 0], W, M), {}, SparseFormatError, r"\(8, 9\)"),
    "weight": ((X, W[0], M[0]), {}, SparseFormatError, r"weight \(5, 3, 3\)"),
    "bias": ((X, W, M, torch.zeros(5)), {}, SparseFormatError, r"bias \(5,\)"),
    "float64": ((X.double(), W, M), {}, SparseFormatError, "float64"),
    "integers": ((X, W.int(), M), {}, SparseFormatError, "int32"),
    "mask shape": ((X, W, M[:3]), {}, MaskError, r"\(3, 5, 3, 3\)"),
    "mask dtype": ((X, W, M.int()), {}, MaskError, "int32"),
    "device": ((X.to("meta"), W, M), {}, DeviceError, "meta"),
    "small image": ((X[..., :2], W, M), {}, SparseFormatError, "smaller than a kernel"),
    "stride 0": ((X, W, M), {"stride": 0}, SparseFormatError, "stride=0"),
    "dilation 0": ((X, W, M), {"dilation": (1, 0)}, SparseFormatError, "dilation="),
    "three paddings": ((X, W, M), {"padding": (1, 1, 1)}, SparseFormatError, "padding="),
    "negative padding": ((X, W, M), {"padding": -1}, SparseFormatError, "padding=-1"),
    "a word": ((X, W, M), {"padding": "full"}, SparseFormatError, "padding='full'"),
    "same with stride": ((X, W, M), {"padding": "same", "stride": 2}, SparseFormatError, "same"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    given, options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        nm_conv2d(*given, **options)


def test_wrong_streams() -> None:
    stream = Stream.build(matrix(M), Blocking(4, 8))
    window = Window((3, 3), (1, 1), (0, 0), (1, 1))
    with pytest.raises(SparseFormatError, match="4 channels and 9 taps"):
        convolve(stream, X[:, :4], None, window, (6, 7), False)
    with pytest.raises(SparseFormatError, match=r"\[batch, channels"):
        convolve(stream, X[0], None, window, (6, 7), False)
    with pytest.raises(DeviceError, match="meta"):
        convolve(stream, X.to("meta"), None, window, (6, 7), False)
    with pytest.raises(SparseFormatError, match="4 output channels"):
        convolve_weight_gradient(stream, X, torch.zeros(2, 3, 6, 7), window)
