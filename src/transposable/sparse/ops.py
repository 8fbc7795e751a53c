"""A linear layer under a mask as torch operators, which torch compiles and differentiates.

``transposable::nm_linear`` and its two gradients are pure functions of their tensors. The handle
says where what was packed is kept between calls, and changes no result: with 0, or the handle of
what has died, the weight is packed for this call only.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import torch
from torch.nn import functional as F

from transposable.errors import DeviceError, LayerError, MaskError, SparseFormatError
from transposable.sparse.checks import VALUE_DTYPES
from transposable.sparse.handles import Packing, find_packed
from transposable.sparse.packed import PackedWeight
from transposable.sparse.semi.operand import DTYPES

# A graph that torch replays by itself would repeat the products, and not what packs the weight.
TAGS: Final = (torch.Tag.cudagraph_unsafe,)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def nm_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    handle: int | torch.Tensor = 0,
    straight_through: bool = False,
    estimate: bool = False,
) -> torch.Tensor:
    """``F.linear`` with a masked weight, on its kept entries only: x (S * W)^T + b.

        dx = dy (S * W),   dW = S * (dy^T x), or dy^T x with ``straight_through``,   db = sum dy

    Args:
        x: [..., in], float32 or bfloat16 on the CPU, bfloat16 or float16 on a GPU. Under autocast
            x is cast; on the CPU the weight never is, since its cast would be another tensor to
            pack for every call: products are of the cast x and the weight itself, which is closer
            to the float32 result than a dense autocast matmul. On a GPU it is packed in the dtype
            of x.
        weight: [out, in], any float, any strides; pruned entries may be anything.
        mask: bool [out, in], True where the weight is kept.
        bias: [out] or None.
        handle: of the :class:`PackedWeight` that keeps the streams, or of the ``SemiWeight`` that
            keeps a 2:4 weight packed; 0 for none, which is dense on a GPU. Compiled code
            should be given its ``tag``, the same as a tensor: a number is compiled in, so that
            each layer would have to be compiled for itself.
        straight_through: whether pruned weights receive a gradient.
        estimate: whether the weight gradient is that of a ``SemiWeight`` that estimates it.

    Returns:
        [..., out] in the dtype of x; sums are of float32. A second derivative is an error.

    Raises:
        SparseFormatError: if a shape or dtype does not fit.
        MaskError: if the mask is no bool tensor in the shape of the weight.
        DeviceError: if a tensor is on another kind of device, or they are on several.

    Complexity: kept / all of the dense products in each of the three matmuls that the decision of
    the :class:`PackedWeight` leaves sparse.

    Example:
        >>> weight, kept = torch.ones(3, 2, requires_grad=True), torch.eye(3, 2, dtype=torch.bool)
        >>> y = nm_linear(torch.tensor([[1.0, 2.0]]), weight, kept)
        >>> y.tolist()
        [[1.0, 2.0, 0.0]]
        >>> y.sum().backward()
        >>> weight.grad.tolist()
        [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]

    Hubara et al., NeurIPS 2021: one mask for the forward pass and the input gradient.
    """
    x = autocast(x)
    _check(x, weight, mask, bias)
    y: torch.Tensor = torch.ops.transposable.nm_linear(
        x, weight, mask, bias, as_handle(handle), straight_through, estimate
    )
    return y


def autocast(x: torch.Tensor) -> torch.Tensor:
    """The input of an operator, cast if autocast is on: a custom operator has to do it itself."""
    kind = x.device.type if x.device.type == "cuda" else "cpu"
    if torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def as_handle(handle: int | torch.Tensor) -> torch.Tensor:
    """A handle as the tensor that the operators take."""
    return handle if isinstance(handle, torch.Tensor) else torch.tensor(handle, device="cpu")


@torch.library.custom_op(
    "transposable::nm_linear",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor x, Tensor weight, Tensor mask, Tensor? bias, Tensor handle, "
    "bool straight_through, bool estimate=False) -> Tensor",
    tags=TAGS,
)
def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    handle: torch.Tensor,
    straight_through: bool,
    estimate: bool = False,
) -> torch.Tensor:
    packed = _packed_of(handle, x)
    if packed is not None and packed.decision(x).forward:
        y = packed.product(x, weight, mask, bias)
        if y is not None:
            return y
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, kept(weight, mask).to(x.dtype), None if bias is None else bias.to(x))


@torch.library.custom_op(
    "transposable::nm_input_gradient",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor dy, Tensor weight, Tensor mask, Tensor handle) -> Tensor",
    tags=TAGS,
)
def _input_gradient(
    dy: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor, handle: torch.Tensor
) -> torch.Tensor:
    packed = _packed_of(handle, dy)
    if packed is not None and packed.decision(dy).input_gradient:
        dx = packed.product(dy, weight, mask, transposed=True)
        if dx is not None:
            return dx
    with torch.autocast(dy.device.type, enabled=False):
        return dy @ kept(weight, mask).to(dy.dtype)


@torch.library.custom_op(
    "transposable::nm_weight_gradient",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor x, Tensor dy, Tensor? mask, Tensor handle) -> Tensor",
    tags=TAGS,
)
def _weight_gradient(
    x: torch.Tensor, dy: torch.Tensor, mask: torch.Tensor | None, handle: torch.Tensor
) -> torch.Tensor:
    packed = _packed_of(handle, x)
    dw = None
    if packed is not None and packed.decision(x).weight_gradient:
        dw = packed.weight_gradient(x, dy, mask)
    if dw is not None:
        return dw
    with torch.autocast(x.device.type, enabled=False):
        dw = _outer(dy, x).to(gradient_dtype(x))
        return dw if mask is None else kept(dw, mask)


@_linear.register_fake
def _linear_like(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    handle: torch.Tensor,
    straight_through: bool,
    estimate: bool = False,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@_input_gradient.register_fake
def _input_gradient_like(
    dy: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor, handle: torch.Tensor
) -> torch.Tensor:
    return dy.new_empty((*dy.shape[:-1], weight.shape[1]))


@_weight_gradient.register_fake
def _weight_gradient_like(
    x: torch.Tensor, dy: torch.Tensor, mask: torch.Tensor | None, handle: torch.Tensor
) -> torch.Tensor:
    return x.new_empty((dy.shape[-1], x.shape[-1]), dtype=gradient_dtype(x))


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, mask, bias, handle, straight_through, estimate = inputs
    for_x, for_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        x if for_weight else None,
        weight if for_x else None,
        mask if for_x or (for_weight and not straight_through) else None,
        handle if for_x or for_weight else None,
    )
    ctx.straight_through, ctx.estimate = straight_through, estimate
    ctx.weight_dtype = weight.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype
    # The layer may die before its gradient is asked for. A compiler's handle has no value yet.
    ctx.packed = find_packed(int(handle)) if type(handle) is torch.Tensor else None


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, mask, handle = ctx.saved_tensors
    ops = torch.ops.transposable
    dx = dw = db = None
    if ctx.needs_input_grad[0]:
        dx = ops.nm_input_gradient(dy, weight, mask, handle)
    if ctx.needs_input_grad[1]:
        if ctx.straight_through and not ctx.estimate:
            dw = _outer(dy, x)
        else:
            seen = None if ctx.straight_through else mask
            dw = ops.nm_weight_gradient(x, dy, seen, handle)
        dw = dw.to(ctx.weight_dtype)
    if ctx.needs_input_grad[3]:
        db = _rows(dy).sum(0, dtype=ctx.bias_dtype)
    return dx, dw, None, db, None, None, None


def no_second_derivative(ctx: Any, *gradients: torch.Tensor) -> NoReturn:
    """Raise: the backward pass of what is a gradient already."""
    raise LayerError(
        "nm_linear, nm_conv2d: the gradients were asked for a derivative of their own "
        "(create_graph=True), which they do not have; run the layer dense-masked for that: "
        "use_backend(layers, DENSE_MASKED)"
    )


_linear.register_autograd(_backward, setup_context=_save)
_input_gradient.register_autograd(no_second_derivative)
_weight_gradient.register_autograd(no_second_derivative)


def gradient_dtype(x: torch.Tensor) -> torch.dtype:
    """In which the gradient of a weight leaves its operator: streams sum in float32."""
    return torch.float32 if x.device.type in ("cpu", "meta") else x.dtype


def _packed_of(handle: torch.Tensor, x: torch.Tensor) -> Packing | None:
    """What is packed under a handle; if that is nothing, what packs for this call only."""
    found = find_packed(int(handle))
    if isinstance(found, PackedWeight) or found is None:
        # Streams are of the CPU, to which a layer may have been moved, or from which.
        return (found or PackedWeight()) if x.device.type == "cpu" else None
    return found


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[..., size] as [tokens, size], of any sizes, zeros included."""
    return x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)


def _outer(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _rows(dy).t() @ _rows(x)


def kept(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Zeros where the mask is False, exact for NaN and infinity: the bits times 0 or 1."""
    return (tensor.view(_INTEGERS[tensor.element_size()]) * mask).view(tensor.dtype)


def _check(
    x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor | None
) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("mask", mask), ("bias", bias)):
        if tensor is not None and (
            tensor.device.type not in ("cpu", "cuda") or tensor.device != x.device
        ):
            raise DeviceError(
                f"nm_linear: {name} is on {tensor.device} and x on {x.device}; the operator is for "
                "the CPU and CUDA: move all tensors to one of them, or use "
                "transposable.nn.functional.linear"
            )
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise MaskError(
            f"nm_linear: received a mask {tuple(mask.shape)} of {mask.dtype} for a weight "
            f"{tuple(weight.shape)}; it must be a bool tensor in the shape of the weight"
        )
    fits = weight.dim() == 2 and x.dim() > 0 and x.shape[-1] == weight.shape[1]
    if not fits or (bias is not None and bias.shape != (weight.shape[0],)):
        raise SparseFormatError(
            f"nm_linear: received x {tuple(x.shape)}, weight {tuple(weight.shape)} and bias "
            f"{None if bias is None else tuple(bias.shape)}; they are [..., in], [out, in] and "
            "[out]"
        )
    dtypes = VALUE_DTYPES if x.device.type == "cpu" else DTYPES
    if x.dtype not in dtypes or not weight.is_floating_point():
        raise SparseFormatError(
            f"nm_linear: received x of {x.dtype} and a weight of {weight.dtype}; x must be one of "
            f"{dtypes} on this device and the weight a float; cast them, or use "
            "transposable.nn.functional.linear, which takes all floats"
        )
