"""pack, linear, dgrad: packed 2:4 weights as tensors, and their products as torch operators.

``nm_linear`` packs for itself and keeps what it packed; these three are for programs that keep the
packed tensors themselves: a step that packs once and runs many micro-batches in one graph, say.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from transposable.errors import DeviceError, MaskError, SparseFormatError
from transposable.sparse.semi.formats import CUTLASS, FORMATS, REFERENCE, Format, format_on
from transposable.sparse.semi.operand import GROUP, KEPT, Operand, fits
from transposable.sparse.semi.tuner import Case, tuner_of


class Packed(NamedTuple):
    """A weight packed for both passes, as four tensors and the name of their format."""

    values: torch.Tensor
    meta: torch.Tensor
    values_t: torch.Tensor
    meta_t: torch.Tensor
    format: str


def pack(weight: torch.Tensor, mask: torch.Tensor, format: str = "auto") -> Packed:
    """S * W and its transpose, packed for sparse tensor cores.

    Args:
        weight: [out, in], bfloat16 or float16 on a GPU; pruned entries may be anything.
        mask: bool [out, in], at most two of every four along both axes. That is not looked at: the
            first row is NaN where it does not hold.
        format: "auto", or a name of ``FORMATS``; "reference" runs anywhere.

    Raises:
        MaskError: if the mask is no bool tensor in the shape of the weight.
        SparseFormatError: if the shape or dtype does not fit the format.
        DeviceError: if no such format runs on the device.

    Complexity: a few passes over the weight; nothing waits for the device.

    Example:
        >>> packed = pack(torch.eye(8), torch.eye(8, dtype=torch.bool), "reference")
        >>> packed.values.shape, packed.format
        (torch.Size([8, 4]), 'reference')
    """
    chosen = format_on(weight.device, format)
    if not isinstance(chosen, Format):
        raise DeviceError(f"pack: {chosen}; move the weight to such a GPU, or run the layer dense")
    if mask.dtype != torch.bool or mask.shape != weight.shape or mask.device != weight.device:
        raise MaskError(
            f"pack: received a mask {tuple(mask.shape)} of {mask.dtype} on {mask.device} for a "
            f"weight {tuple(weight.shape)} on {weight.device}; it must be a bool tensor like it"
        )
    multiple = chosen.multiple
    sides_fit = weight.dim() == 2 and all(side and side % multiple == 0 for side in weight.shape)
    if not sides_fit or weight.dtype not in chosen.dtypes:
        raise SparseFormatError(
            f"pack: received a weight {tuple(weight.shape)} of {weight.dtype}; {chosen.name} takes "
            f"matrices with sides that are multiples of {multiple}, in {chosen.dtypes}"
        )
    a, b, c, d = torch.ops.transposable.semi_pack(weight, mask, chosen.name)
    return Packed(a, b, c, d, chosen.name)


def linear(x: torch.Tensor, packed: Packed, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (S * W)^T + b, differentiable for x and the bias, not for the weight.

    Args:
        x: [..., in], in the dtype of the packed weight.
        packed: of :func:`pack`.
        bias: [out] or None.

    Returns:
        [..., out].

    Raises:
        SparseFormatError: if a shape or dtype does not fit.
        DeviceError: if no algorithm of the library computes the product right on this GPU.

    Example:
        >>> packed = pack(torch.eye(8), torch.eye(8, dtype=torch.bool), "reference")
        >>> linear(torch.arange(8.0), packed).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    out, into = packed.values.shape[0], packed.values_t.shape[0]
    _check_input("linear", x, into, packed)
    if bias is not None and bias.shape != (out,):
        raise SparseFormatError(
            f"linear: received a bias {tuple(bias.shape)} for {out} outputs; it is [out]"
        )
    y: torch.Tensor = torch.ops.transposable.semi_linear(x, *packed[:4], bias, packed.format)
    return y


def dgrad(dy: torch.Tensor, packed: Packed) -> torch.Tensor:
    """dy (S * W), the gradient of :func:`linear` for x.

    Args:
        dy: [..., out], in the dtype of the packed weight.
        packed: of :func:`pack`.

    Returns:
        [..., in].

    Raises:
        As :func:`linear`.

    Example:
        >>> packed = pack(2 * torch.eye(8), torch.eye(8, dtype=torch.bool), "reference")
        >>> dgrad(torch.ones(8), packed).tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """
    _check_input("dgrad", dy, packed.values.shape[0], packed)
    into = packed.values_t.shape[0]
    dx: torch.Tensor = torch.ops.transposable.semi_dgrad(
        dy, packed.values_t, packed.meta_t, into, packed.format
    )
    return dx


_DEVICES = ("cpu", "cuda")


@torch.library.custom_op("transposable::semi_pack", mutates_args=(), device_types=_DEVICES)
def _pack(
    weight: torch.Tensor, mask: torch.Tensor, format: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    chosen = FORMATS[format]
    found: list[torch.Tensor] = []
    with torch.autocast(weight.device.type, enabled=False):
        good = fits(mask) & fits(mask.t())
        for transposed in (False, True):
            one = chosen.pack(weight, mask, weight.dtype, transposed=transposed, good=good)
            found += [one.values, one.meta]
    return found[0], found[1], found[2], found[3]


@_pack.register_fake
def _pack_like(
    weight: torch.Tensor, mask: torch.Tensor, format: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    out, into = weight.shape
    found: list[torch.Tensor] = []
    for rows, cols in ((out, into), (into, out)):
        if format == REFERENCE.name:
            size = rows, cols // GROUP * KEPT
            found += [weight.new_empty(size), weight.new_empty(size, dtype=torch.uint8)]
        elif format == CUTLASS.name:
            meta = weight.new_empty((cols // 32, rows, 2), dtype=torch.int16).permute(1, 2, 0)
            found += [weight.new_empty((rows, cols // 2)), meta]
        else:
            # The library alone knows how much it takes: 9 / 16 of the entries, and maybe more.
            wide = torch.library.get_ctx().new_dynamic_size()
            found += [weight.new_empty((rows, wide)), weight.new_empty(0, dtype=torch.uint8)]
    return found[0], found[1], found[2], found[3]


@torch.library.custom_op("transposable::semi_linear", mutates_args=(), device_types=_DEVICES)
def _linear(
    x: torch.Tensor,
    values: torch.Tensor,
    meta: torch.Tensor,
    values_t: torch.Tensor,
    meta_t: torch.Tensor,
    bias: torch.Tensor | None,
    format: str,
) -> torch.Tensor:
    operand = Operand(values, meta, values.shape[0], values_t.shape[0])
    return _product(FORMATS[format], operand, x, bias)


@_linear.register_fake
def _linear_like(
    x: torch.Tensor,
    values: torch.Tensor,
    meta: torch.Tensor,
    values_t: torch.Tensor,
    meta_t: torch.Tensor,
    bias: torch.Tensor | None,
    format: str,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], values.shape[0]))


@torch.library.custom_op("transposable::semi_dgrad", mutates_args=(), device_types=_DEVICES)
def _dgrad(
    dy: torch.Tensor, values_t: torch.Tensor, meta_t: torch.Tensor, into: int, format: str
) -> torch.Tensor:
    operand = Operand(values_t, meta_t, into, dy.shape[-1])
    return _product(FORMATS[format], operand, dy, None)


@_dgrad.register_fake
def _dgrad_like(
    dy: torch.Tensor, values_t: torch.Tensor, meta_t: torch.Tensor, into: int, format: str
) -> torch.Tensor:
    return dy.new_empty((*dy.shape[:-1], into))


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, _, _, values_t, meta_t, bias, format = inputs
    ctx.save_for_backward(values_t, meta_t)
    ctx.into, ctx.format = values_t.shape[0], format
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    values_t, meta_t = ctx.saved_tensors
    dx = db = None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.transposable.semi_dgrad(dy, values_t, meta_t, ctx.into, ctx.format)
    if ctx.needs_input_grad[5]:
        db = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=ctx.bias_dtype)
    return dx, None, None, None, None, db, None


_linear.register_autograd(_backward, setup_context=_save)


def _product(
    format: Format, operand: Operand, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    rows = x.reshape(-1, operand.cols)
    if not rows.shape[0]:
        return x.new_empty((*x.shape[:-1], operand.rows))
    sides = operand.rows, operand.cols, rows.shape[0]
    case = Case(format, *sides, x.dtype, bias is not None, x.device)
    algorithm = tuner_of(x.device).algorithm(case)
    if algorithm is None:
        raise DeviceError(
            f"linear, dgrad: no algorithm of {format.name} computes {operand.rows} x "
            f"{operand.cols} with {rows.shape[0]} tokens in {x.dtype} right on {x.device}; run the "
            "layer dense"
        )
    with torch.autocast(x.device.type, enabled=False):
        y = format.matmul(operand, rows, None if bias is None else bias.to(x.dtype), algorithm)
    return y.reshape(*x.shape[:-1], operand.rows)


def _check_input(operation: str, x: torch.Tensor, size: int, packed: Packed) -> None:
    if x.dim() == 0 or x.shape[-1] != size or x.dtype != packed.values.dtype:
        raise SparseFormatError(
            f"{operation}: received {tuple(x.shape)} of {x.dtype} for a packed weight that takes "
            f"[..., {size}] of {packed.values.dtype}; pack a weight of that dtype, or cast"
        )
