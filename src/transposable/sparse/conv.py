"""A convolution under a mask as torch operators, beside those of a linear layer in ops.py.

``transposable::nm_conv2d`` and its two gradients are pure functions of their tensors; the handle is
that of :class:`~transposable.sparse.PackedWeight` and changes no result.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn import functional as F

from transposable.errors import DeviceError, MaskError, SparseFormatError
from transposable.sparse.checks import VALUE_DTYPES
from transposable.sparse.handles import find_packed
from transposable.sparse.images import (
    Pair,
    Window,
    choice_of,
    convolve,
    convolve_weight_gradient,
    empty_images,
    is_channels_last,
)
from transposable.sparse.ops import as_handle, autocast, kept, no_second_derivative
from transposable.sparse.packed import stream_packing

Padding = int | Pair | Literal["same", "valid"]


def nm_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    handle: int | torch.Tensor = 0,
    straight_through: bool = False,
    *,
    stride: int | Pair = 1,
    padding: Padding = 0,
    dilation: int | Pair = 1,
) -> torch.Tensor:
    """``F.conv2d`` with a masked weight, on its kept entries only: x * (S * W) + b.

        dx = dy *^T (S * W),   dW = S * (dy * x), or dy * x with ``straight_through``,   db = sum dy

    Args:
        x: [batch, in, height, width] or [in, height, width], float32 or bfloat16, on the CPU, any
            strides; cast under autocast as by :func:`~transposable.sparse.nm_linear`.
        weight: [out, in, kernel height, kernel width], any float, any strides; pruned entries may
            be anything. One group.
        mask: bool, the shape of the weight.
        bias: [out] or None.
        handle: as for :func:`~transposable.sparse.nm_linear`.
        straight_through: whether pruned weights receive a gradient.
        stride, padding, dilation: as for ``F.conv2d``; padding is with zeros.

    Returns:
        [batch, out, height, width] in the dtype of x, with channels last where x or the weight has
        them last, as ``F.conv2d``; sums are of float32. A second derivative is an error.

    Raises:
        SparseFormatError: if a shape, dtype or number does not fit.
        MaskError: if the mask is no bool tensor in the shape of the weight.
        DeviceError: if a tensor is not on the CPU.

    Complexity: kept / all of the dense products in each of the three passes that the decision of
    the :class:`~transposable.sparse.PackedWeight` leaves sparse; the input gradient is dense with a
    stride of more than 1.

    Example:
        >>> kept = torch.eye(2, dtype=torch.bool).reshape(1, 1, 2, 2)
        >>> nm_conv2d(torch.arange(6.0).reshape(1, 1, 2, 3), torch.ones(1, 1, 2, 2), kept).tolist()
        [[[[4.0, 6.0]]]]

    Hubara et al., NeurIPS 2021: one mask for the forward pass and the input gradient.
    """
    x = autocast(x)
    _check(x, weight, mask, bias)
    kernel = weight.shape[2], weight.shape[3]
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    pads, more = symmetric_padding(padding, kernel, dilations)
    if padding == "same" and strides != (1, 1):
        raise SparseFormatError(
            f"nm_conv2d: received padding='same' with a stride of {strides}; it is for a stride of "
            "1: give the padding as numbers"
        )
    images = x if x.dim() == 4 else x.unsqueeze(0)
    if any(more):
        images = F.pad(images, (0, more[1], 0, more[0]))
    window = Window(kernel, strides, pads, dilations)
    if min(window.output(images.shape[2], images.shape[3])) < 1:
        raise SparseFormatError(
            f"nm_conv2d: received images of {x.shape[-2]} x {x.shape[-1]}, which with padding "
            f"{pads} are smaller than a kernel {kernel} with dilation {dilations}"
        )
    y: torch.Tensor = torch.ops.transposable.nm_conv2d(
        images,
        weight,
        mask,
        bias,
        as_handle(handle),
        straight_through,
        list(strides),
        list(pads),
        list(dilations),
    )
    return y if x.dim() == 4 else y.squeeze(0)


def symmetric_padding(
    padding: Padding | str | tuple[int, ...], kernel: Pair, dilation: Pair
) -> tuple[Pair, Pair]:
    """The padding on both sides, and how much more there is below and on the right.

    Example:
        >>> symmetric_padding("same", (2, 3), (1, 1))
        ((0, 1), (1, 0))
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        down, across = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        return (down // 2, across // 2), (down % 2, across % 2)
    return pair("padding", padding, 0), (0, 0)


@torch.library.custom_op(
    "transposable::nm_conv2d",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor mask, Tensor? bias, Tensor handle, "
    "bool straight_through, int[] stride, int[] padding, int[] dilation) -> Tensor",
)
def _conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    handle: torch.Tensor,
    straight_through: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    packed, window = stream_packing(handle), _window(weight, stride, padding, dilation)
    last = is_channels_last(x) or is_channels_last(weight)
    size = window.output(x.shape[2], x.shape[3])
    if choice_of(packed, x.shape, x.shape[0] * size[0] * size[1], last, x.dtype).forward:
        with packed.use(weight, mask) as stream:
            return convolve(stream, x, bias, window, size, last)
    with torch.autocast("cpu", enabled=False):
        shift = None if bias is None else bias.to(x)
        y = F.conv2d(x, kept(weight, mask).to(x.dtype), shift, stride, padding, dilation)
    return _in_format(y, last)


@torch.library.custom_op(
    "transposable::nm_conv2d_input_gradient",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor dy, Tensor weight, Tensor mask, Tensor handle, SymInt[] size, int[] stride, "
    "int[] padding, int[] dilation, bool channels_last) -> Tensor",
)
def _input_gradient(
    dy: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    handle: torch.Tensor,
    size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    channels_last: bool,
) -> torch.Tensor:
    packed, window = stream_packing(handle), _window(weight, stride, padding, dilation)
    shape = dy.shape[0], weight.shape[1], *size
    choice = choice_of(packed, shape, _pixels(dy), channels_last, dy.dtype)
    if choice.input_gradient and window.stride == (1, 1):
        with packed.use(weight, mask, transposed=True) as stream:
            to = size[0], size[1]
            return convolve(stream, dy, None, window.backwards(), to, channels_last)
    with torch.autocast("cpu", enabled=False):
        like = empty_images(shape, dy.dtype, channels_last, dy.device)  # never read
        masked = kept(weight, mask).to(dy.dtype)
        dx = _dense_gradients(dy, like, masked, window, (True, False))[0]
    return _in_format(dx, channels_last)


@torch.library.custom_op(
    "transposable::nm_conv2d_weight_gradient",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor dy, Tensor mask, Tensor handle, int[] stride, int[] padding, "
    "int[] dilation, bool channels_last) -> Tensor",
)
def _weight_gradient(
    x: torch.Tensor,
    dy: torch.Tensor,
    mask: torch.Tensor,
    handle: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    channels_last: bool,
) -> torch.Tensor:
    packed, window = stream_packing(handle), _window(mask, stride, padding, dilation)
    out = torch.empty_like(mask, dtype=torch.float32)
    if choice_of(packed, x.shape, _pixels(dy), channels_last, x.dtype).weight_gradient:
        with packed.use(None, mask) as stream:
            found = convolve_weight_gradient(stream, x, dy, window)
        rows, into, *kernel = mask.shape
        return out.copy_(found.view(rows, *kernel, into).permute(0, 3, 1, 2))
    with torch.autocast("cpu", enabled=False):
        dense = _dense_weight_gradient(x, dy, out, window).float()
        return out.copy_(kept(dense, mask))


@_conv.register_fake
def _conv_like(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    handle: torch.Tensor,
    straight_through: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    window = _window(weight, stride, padding, dilation)
    shape = x.shape[0], weight.shape[0], *window.output(x.shape[2], x.shape[3])
    last = is_channels_last(x) or is_channels_last(weight)
    return empty_images(shape, x.dtype, last, x.device)


@_input_gradient.register_fake
def _input_gradient_like(
    dy: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    handle: torch.Tensor,
    size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    channels_last: bool,
) -> torch.Tensor:
    shape = dy.shape[0], weight.shape[1], *size
    return empty_images(shape, dy.dtype, channels_last, dy.device)


@_weight_gradient.register_fake
def _weight_gradient_like(
    x: torch.Tensor,
    dy: torch.Tensor,
    mask: torch.Tensor,
    handle: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    channels_last: bool,
) -> torch.Tensor:
    return torch.empty_like(mask, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, mask, bias, handle, straight_through, stride, padding, dilation = inputs
    for_x, for_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        x if for_weight else None,
        weight if for_x or (for_weight and straight_through) else None,
        mask if for_x or (for_weight and not straight_through) else None,
        handle if for_x or for_weight else None,
    )
    ctx.straight_through = straight_through
    ctx.window = stride, padding, dilation
    ctx.size = x.shape[2], x.shape[3]
    ctx.channels_last = is_channels_last(x) or is_channels_last(weight)
    ctx.weight_dtype = weight.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype
    # The layer may die before its gradient is asked for. A compiler's handle has no value yet.
    ctx.packed = find_packed(int(handle)) if type(handle) is torch.Tensor else None


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, mask, handle = ctx.saved_tensors
    ops = torch.ops.transposable
    last = ctx.channels_last
    dx = dw = db = None
    if ctx.needs_input_grad[0]:
        dx = ops.nm_conv2d_input_gradient(dy, weight, mask, handle, ctx.size, *ctx.window, last)
    if ctx.needs_input_grad[1]:
        if ctx.straight_through:
            like = weight.to(x.dtype)
            dw = _dense_weight_gradient(x, dy, like, _window(weight, *ctx.window))
        else:
            dw = ops.nm_conv2d_weight_gradient(x, dy, mask, handle, *ctx.window, last)
        dw = dw.to(ctx.weight_dtype)
    if ctx.needs_input_grad[3]:
        db = dy.sum((0, 2, 3), dtype=ctx.bias_dtype)
    return dx, dw, None, db, None, None, None, None, None


_conv.register_autograd(_backward, setup_context=_save)
_input_gradient.register_autograd(no_second_derivative)
_weight_gradient.register_autograd(no_second_derivative)


def _window(
    weight: torch.Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> Window:
    kernel = weight.shape[2], weight.shape[3]
    return Window(
        kernel,
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        (dilation[0], dilation[1]),
    )


def _pixels(dy: torch.Tensor) -> int:
    return dy.shape[0] * dy.shape[2] * dy.shape[3]


def _dense_weight_gradient(
    x: torch.Tensor, dy: torch.Tensor, weight: torch.Tensor, window: Window
) -> torch.Tensor:
    """dy * x in the dtype of x; of the weight only shape and strides matter."""
    return _dense_gradients(dy, x, weight.to(x.dtype), window, (False, True))[1]


def _dense_gradients(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    window: Window,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    stride, padding, dilation = window.stride, window.padding, window.dilation
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, (*wanted, False)
    )
    return dx, dw


def _in_format(images: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """The same images with the strides that the fake operators promise."""
    wanted = empty_images(images.shape, images.dtype, channels_last, torch.device("meta"))
    if images.stride() == wanted.stride():
        return images
    return empty_images(images.shape, images.dtype, channels_last, images.device).copy_(images)


def pair(name: str, numbers: Any, least: int) -> Pair:
    """One or two integers as two, checked."""
    given = (numbers, numbers) if isinstance(numbers, int) else tuple(numbers)
    if len(given) == 1:
        given *= 2
    if len(given) != 2 or not all(isinstance(n, int) and n >= least for n in given):
        raise SparseFormatError(
            f"nm_conv2d: received {name}={numbers!r}; it is one or two integers of at least {least}"
            + (", 'same' or 'valid'" if name == "padding" else "")
        )
    return given[0], given[1]


def _check(
    x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor | None
) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("mask", mask), ("bias", bias)):
        if tensor is not None and tensor.device.type != "cpu":
            raise DeviceError(
                f"nm_conv2d: {name} is on {tensor.device}; the operator is for the CPU: move all "
                "tensors there, or use transposable.nn.functional.conv2d"
            )
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise MaskError(
            f"nm_conv2d: received a mask {tuple(mask.shape)} of {mask.dtype} for a weight "
            f"{tuple(weight.shape)}; it must be a bool tensor in the shape of the weight"
        )
    fits = weight.dim() == 4 and x.dim() in (3, 4) and x.shape[-3] == weight.shape[1]
    if not fits or (bias is not None and bias.shape != (weight.shape[0],)):
        raise SparseFormatError(
            f"nm_conv2d: received x {tuple(x.shape)}, weight {tuple(weight.shape)} and bias "
            f"{None if bias is None else tuple(bias.shape)}; they are [batch, in, height, width], "
            "[out, in, kernel height, kernel width] and [out]"
        )
    if x.dtype not in VALUE_DTYPES or not weight.is_floating_point():
        raise SparseFormatError(
            f"nm_conv2d: received x of {x.dtype} and a weight of {weight.dtype}; x must be float32 "
            "or bfloat16 and the weight a float; cast them, or use "
            "transposable.nn.functional.conv2d, which takes all floats"
        )
