"""A compressed linear layer as one torch operator, for inference."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from transposable.errors import CompressionError, DeviceError, SparseFormatError
from transposable.sparse.checks import check_tensors
from transposable.sparse.stream import Blocking, Stream


def nm_packed_linear(x: torch.Tensor, stream: Stream, bias: torch.Tensor | None) -> torch.Tensor:
    """``F.linear`` with a compressed weight, without gradients: x A^T + b.

    Args:
        x: [..., in], float32 or bfloat16, on the CPU. Under autocast it is cast as for a dense
            layer; the values of the stream stay as they are.
        stream: of the weight [out, in].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x; sums are of float32.

    Raises:
        CompressionError: if a gradient is asked for.
        SparseFormatError: if a shape or dtype does not fit.
        DeviceError: if a tensor is not on the CPU.

    Example:
        >>> stream = Stream.build(torch.eye(2, dtype=torch.bool), Blocking(8, 8))
        >>> stream.fill(torch.tensor([[2.0, 9.0], [9.0, 3.0]]))
        >>> nm_packed_linear(torch.ones(1, 2), stream, torch.ones(2)).tolist()
        [[3.0, 4.0]]
    """
    _check_device(x, stream.values)
    if torch.is_autocast_enabled("cpu") and x.dtype in (torch.float32, torch.bfloat16):
        target = torch.get_autocast_dtype("cpu")
        x = x.to(target) if target == torch.bfloat16 else x
    y: torch.Tensor = torch.ops.transposable.nm_packed_linear(
        x,
        stream.index,
        stream.starts,
        stream.values,
        bias,
        stream.rows,
        stream.cols,
        stream.blocking.row_block,
        stream.blocking.col_block,
    )
    return y


@torch.library.custom_op("transposable::nm_packed_linear", mutates_args=(), device_types="cpu")
def _packed_linear(
    x: torch.Tensor,
    index: torch.Tensor,
    starts: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    rows: int,
    cols: int,
    row_block: int,
    col_block: int,
) -> torch.Tensor:
    # What can be seen at a glance; Stream.check walks the index, once, when it is loaded.
    blocking = Blocking(row_block, col_block)
    check_tensors(index, starts, values, rows, cols)
    blocks = -(-rows // row_block) * -(-cols // col_block)
    if starts.shape != (2, blocks + 1) or starts[:, -1].tolist() != [len(index), len(values)]:
        raise SparseFormatError(
            f"compressed linear layer: received starts {tuple(starts.shape)}, {len(index)} entries "
            f"of the index and {len(values)} values, which are not those of one {rows} x {cols} "
            "matrix; pass the tensors of one Stream"
        )
    return Stream(index, starts, values, rows, cols, blocking).matmul(x, bias)


@_packed_linear.register_fake
def _packed_linear_like(
    x: torch.Tensor,
    index: torch.Tensor,
    starts: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    rows: int,
    cols: int,
    row_block: int,
    col_block: int,
) -> torch.Tensor:
    _check_device(x, values)
    return x.new_empty((*x.shape[:-1], rows))


def _check_device(x: torch.Tensor, values: torch.Tensor) -> None:
    # On "meta" there are no numbers, and none can be wrong.
    if x.device != values.device or x.device.type not in ("cpu", "meta"):
        raise DeviceError(
            f"compressed linear layer: the input is on {x.device} and the weight on "
            f"{values.device}; both must be on the CPU: move them there, or use the dense model on "
            "that device"
        )


def refuse_gradient() -> NoReturn:
    """Raise, since a compressed weight has neither gradients nor a transposed stream."""
    raise CompressionError(
        "compressed linear layer: a gradient was asked for, and compressed layers are for "
        "inference only; call the model under torch.inference_mode(), or train the sparse model "
        "that was compressed"
    )


def _no_backward(ctx: Any, dy: torch.Tensor) -> NoReturn:
    refuse_gradient()


_packed_linear.register_autograd(_no_backward)
