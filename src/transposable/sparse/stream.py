"""Stream: a matrix of which only the kept weights are stored, and what is computed with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch

from transposable import _core
from transposable.errors import DeviceError, MaskError, SparseFormatError
from transposable.pattern import Pattern
from transposable.sparse.checks import ROW_BLOCKS, VALUE_DTYPES, WIDEST_BLOCK, check_index

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Of weights that can be read; inputs are float32 or bfloat16."""


@dataclass(frozen=True, slots=True)
class Blocking:
    """How a matrix is cut into blocks.

    Args:
        row_block: rows of a block, 4 or 8.
        col_block: columns of a block, 1 to 65,536.

    Raises:
        SparseFormatError: if a number is another.

    Example:
        >>> Blocking(8, 512)
        Blocking(row_block=8, col_block=512)
    """

    row_block: int
    col_block: int

    def __post_init__(self) -> None:
        if self.row_block not in ROW_BLOCKS or not 1 <= self.col_block <= WIDEST_BLOCK:
            raise SparseFormatError(
                f"Blocking: received {self.row_block} rows and {self.col_block} columns; a block "
                f"has 4 or 8 rows and 1 to {WIDEST_BLOCK} columns; Blocking.best(pattern, cols) "
                "finds good ones"
            )

    @classmethod
    def best(cls, pattern: Pattern | None, cols: int) -> Self:
        """The blocks that suit a pattern on this machine.

        Args:
            pattern: None if it is not known: taken for half of the weights, in no order.
            cols: columns of the matrix, which are shared out evenly.

        Example:
            >>> Blocking.best(Pattern.parse("2:4T"), 24).col_block
            24
        """
        n, m = (8, 16) if pattern is None else (pattern.n, pattern.m)
        row_block, widest = _core.sparse_blocking(n, m)
        across = -(-max(cols, 1) // widest)
        # Whole groups of 8, which is how the columns of a tile stay together.
        return cls(row_block, min(-(-max(cols, 1) // (8 * across)) * 8, widest))


class Stream:
    """The kept entries of a matrix A [rows, cols], in the order in which a matmul needs them.

        y = x A^T + b,   A_rc = 0 where nothing is kept

    The bytes are specified in docs/sparse.md. A stream does not follow a weight: whoever fills it
    has to fill it again, see :class:`~transposable.sparse.PackedWeight`.

    Attributes:
        index: uint16, the kept columns of each block by type.
        starts: int64 [2, blocks + 1], where blocks start in ``index`` and in ``values``.
        values: float32 or bfloat16, the kept weights.
        rows, cols: of the matrix.
        blocking: how it is cut.

    Example:
        >>> mask = torch.eye(4, dtype=torch.bool)
        >>> stream = Stream.build(mask, Blocking(8, 512))
        >>> stream.fill(torch.arange(16.0).reshape(4, 4))
        >>> stream.values.tolist(), stream.matmul(torch.ones(4)).tolist()
        ([0.0, 5.0, 10.0, 15.0], [0.0, 5.0, 10.0, 15.0])
    """

    __slots__ = ("_order", "blocking", "cols", "index", "rows", "starts", "values")

    index: torch.Tensor
    starts: torch.Tensor
    values: torch.Tensor
    rows: int
    cols: int
    blocking: Blocking

    def __init__(
        self,
        index: torch.Tensor,
        starts: torch.Tensor,
        values: torch.Tensor,
        rows: int,
        cols: int,
        blocking: Blocking,
    ) -> None:
        """A stream of these tensors; call :meth:`check` on what comes from outside."""
        self.index = index
        self.starts = starts
        self.values = values
        self.rows = rows
        self.cols = cols
        self.blocking = blocking
        self._order: torch.Tensor | None = None

    @classmethod
    def build(
        cls, mask: torch.Tensor, blocking: Blocking, dtype: torch.dtype = torch.float32
    ) -> Self:
        """The stream of a mask; its values are NaN until :meth:`fill`.

        Args:
            mask: bool [rows, cols] on the CPU, any strides, True where a weight is kept.
            blocking: how the matrix is cut.
            dtype: of the values, float32 or bfloat16.

        Raises:
            MaskError: if the mask is no bool matrix.
            DeviceError: if it is not on the CPU.
            SparseFormatError: if the values cannot have the dtype.

        Complexity: O(rows cols).
        """
        if mask.dtype != torch.bool or mask.dim() != 2:
            raise MaskError(
                f"Stream.build: received a mask of dtype {mask.dtype} and shape "
                f"{tuple(mask.shape)}; it takes a bool matrix [rows, cols]"
            )
        _on_cpu("Stream.build", mask=mask)
        if dtype not in VALUE_DTYPES:
            raise SparseFormatError(
                f"Stream.build: received dtype {dtype}; values are float32 or bfloat16"
            )
        rows, cols = mask.shape
        threads = torch.get_num_threads()
        found = _core.sparse_index(mask.detach(), blocking.row_block, blocking.col_block, threads)
        with torch.inference_mode(False):  # values are written again later, in whatever mode
            index, starts = (torch.from_numpy(array) for array in found)
            values = torch.full((int(starts[1, -1]),), float("nan"), dtype=dtype)
        return cls(index, starts, values, rows, cols, blocking)

    def empty_like(self, dtype: torch.dtype) -> Self:
        """A stream with the same index, shared, and values of its own, NaN until they are filled.

        Args:
            dtype: of the values, float32 or bfloat16.
        """
        with torch.inference_mode(False):
            values = torch.full_like(self.values, float("nan"), dtype=dtype)
        other = type(self)(self.index, self.starts, values, self.rows, self.cols, self.blocking)
        other._order = self._order
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of index, starts and values together."""
        return self.index.nbytes + self.starts.nbytes + self.values.nbytes

    @property
    def bytes_per_weight(self) -> float:
        """Bytes for each of the rows * cols weights, pruned ones included; dense float32 has 4."""
        return self.nbytes / max(self.rows * self.cols, 1)

    def check(self) -> None:
        """Make sure that tensors from outside, of a file say, are a stream.

        Native code trusts the index. This walks all of it: every start, type, count, column and
        terminator.

        Raises:
            SparseFormatError: if anything is not as in the specification.
            DeviceError: if a tensor is not on the CPU.

        Complexity: a few passes over the index and one sort of it.
        """
        check_index(*self.where, self.values)

    def fill(self, weight: torch.Tensor) -> None:
        """Take the values from a weight; what is pruned there may be anything, NaN included.

        Args:
            weight: [rows, cols], float32, bfloat16, float16 or float64, any strides.

        Raises:
            SparseFormatError: if shape or dtype are others.
            DeviceError: if it is not on the CPU.
        """
        _on_cpu("Stream.fill", weight=weight)
        if tuple(weight.shape) != (self.rows, self.cols) or weight.dtype not in FLOAT_DTYPES:
            raise SparseFormatError(
                f"Stream.fill: received a weight {tuple(weight.shape)} of {weight.dtype} for the "
                f"mask {(self.rows, self.cols)}; the two must agree, and the weight must be a float"
            )
        _core.sparse_fill(*self.where, weight.detach(), self.values, torch.get_num_threads())

    def dense(self) -> torch.Tensor:
        """The matrix, with zeros where nothing is kept, in the dtype of the values."""
        out = torch.zeros(self.rows, self.cols)
        _core.sparse_scatter(*self.where, self.values, out, torch.get_num_threads())
        return out.to(self.values.dtype)

    def matmul(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x A^T + b, not differentiable: see :func:`~transposable.sparse.nm_linear`.

            y_tr = sum_c A_rc x_tc + b_r   over the kept c

        A pruned weight is not multiplied: infinity or NaN in x reach only rows that keep the
        column, where a dense product would have 0 * infinity = NaN.

        Args:
            x: [..., cols], float32 or bfloat16, any strides.
            bias: [rows] or None.

        Returns:
            [..., rows] in the dtype of x; sums are of float32.

        Raises:
            SparseFormatError: if a shape or dtype does not fit.
            DeviceError: if a tensor is not on the CPU.
        """
        _on_cpu("Stream.matmul", x=x)
        self._check_last("Stream.matmul", "x", x, self.cols)
        if bias is not None:
            _on_cpu("Stream.matmul", bias=bias)
            if bias.shape != (self.rows,):
                raise SparseFormatError(
                    f"Stream.matmul: received a bias {tuple(bias.shape)} for {self.rows} rows; "
                    "it has one entry for each row"
                )
            bias = bias.detach().float().contiguous()
        flat = _as_matrix(x)
        out = torch.empty(flat.shape[0], self.rows, dtype=x.dtype)
        _core.sparse_matmul(*self.where, self.values, flat, bias, out, torch.get_num_threads())
        return out.view(*x.shape[:-1], self.rows)

    def weight_gradient(self, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        """The gradient of the kept weights, zero for the others.

            dA_rc = sum_t dy_tr x_tc   where kept

        Args:
            x: [..., cols], the input of :meth:`matmul`.
            dy: [..., rows], the gradient of its output.

        Returns:
            float32 [rows, cols].

        Raises:
            SparseFormatError: if a shape or dtype does not fit.
            DeviceError: if a tensor is not on the CPU.
        """
        _on_cpu("Stream.weight_gradient", x=x, dy=dy)
        self._check_last("Stream.weight_gradient", "x", x, self.cols)
        self._check_last("Stream.weight_gradient", "dy", dy, self.rows)
        if x.shape[:-1] != dy.shape[:-1] or x.dtype != dy.dtype:
            raise SparseFormatError(
                f"Stream.weight_gradient: received x {tuple(x.shape)} of {x.dtype} and dy "
                f"{tuple(dy.shape)} of {dy.dtype}; all dimensions but the last must agree, and "
                "the dtypes"
            )
        out = torch.empty(self.rows, self.cols)
        threads = torch.get_num_threads()
        flat, gradient = _as_matrix(x), _as_matrix(dy)
        _core.sparse_weight_gradient(
            self.order(), self.rows, self.cols, flat, gradient, out, threads
        )
        return out

    def order(self) -> torch.Tensor:
        """The columns in the order in which :meth:`weight_gradient` takes them.

        uint32 [groups, slabs, slab]: for each group of 8 rows (4 where else few columns would be
        alike) and each slab of columns, the kept columns by ascending type, as 65,536 times the
        type (bit r: row r of the group keeps it) plus the place in the slab; 0 where there are no
        more. Made at the first call, 0.5 to 1 byte for each entry of the matrix.
        """
        if self._order is None:
            found = _core.sparse_gradient_order(*self.where, torch.get_num_threads())
            with torch.inference_mode(False):
                self._order = torch.from_numpy(found)
        return self._order

    def __repr__(self) -> str:
        return (
            f"Stream({self.rows} x {self.cols}, {len(self.values)} kept, {self.values.dtype}, "
            f"{self.blocking})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # As int16: torch 2.13 writes uint16 tensors into plain pickles that it cannot read.
        tensors = self.index.view(torch.int16), self.starts, self.values
        return _restored, (type(self), *tensors, self.rows, self.cols, self.blocking)

    @property
    def where(self) -> tuple[torch.Tensor, torch.Tensor, int, int, int, int]:
        """What every native function begins with."""
        blocking = self.blocking
        return (
            self.index,
            self.starts,
            self.rows,
            self.cols,
            blocking.row_block,
            blocking.col_block,
        )

    def _check_last(self, operation: str, name: str, x: torch.Tensor, size: int) -> None:
        if x.dim() == 0 or x.shape[-1] != size or x.dtype not in VALUE_DTYPES:
            raise SparseFormatError(
                f"{operation}: received {name} {tuple(x.shape)} of {x.dtype} for the matrix "
                f"{(self.rows, self.cols)}; its last dimension must be {size}, and its dtype "
                "float32 or bfloat16"
            )


def _restored(kind: type[Stream], index: torch.Tensor, *rest: Any) -> Stream:
    return kind(index.view(torch.uint16), *rest)


def _on_cpu(operation: str, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise DeviceError(
                f"{operation}: {name} is on {tensor.device}; streams are for the CPU: move it "
                "there, or use the dense layer on that device"
            )


def _as_matrix(x: torch.Tensor) -> torch.Tensor:
    """[tokens, last] with unit stride along the last dimension, a view where possible."""
    tokens = x.shape[:-1].numel()
    flat = x.detach().reshape(tokens, x.shape[-1])
    if flat.shape[-1] <= 1 or flat.stride(-1) == 1:
        return flat
    # To torch an empty tensor is contiguous whatever its strides.
    return flat.contiguous() if flat.numel() else torch.empty(flat.shape, dtype=x.dtype)
