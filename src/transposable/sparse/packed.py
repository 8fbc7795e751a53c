"""PackedWeight: the streams of a weight that trains, kept in step with it."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch

from transposable.errors import DeviceError, LayerError, MaskError, SparseFormatError
from transposable.pattern import Pattern
from transposable.sparse.choice import Decide, always_sparse
from transposable.sparse.handles import Packing, find_packed, register
from transposable.sparse.seen import Seen
from transposable.sparse.stream import FLOAT_DTYPES, Blocking, Stream


def matrix(weight: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
    """A weight as the matrix that a stream is made of: a view where its strides allow one.

        W, or W^T;  of a kernel A_o,(k,i) = W_oik, or B_i,(k,o) = W_oik:  tap by tap

    Args:
        weight: [out, in], or [out, in, height, width] of a convolution. N:M along both axes, a
            matrix is so too, since its groups lie within a tap.
        transposed: whether to have the matrix for the input gradient.

    Complexity: O(1) for matrices, kernels of one tap, and the matrix A of a kernel with channels
    last, else a copy.

    Example:
        >>> matrix(torch.arange(8).reshape(1, 2, 2, 2)).tolist()
        [[0, 4, 1, 5, 2, 6, 3, 7]]
    """
    if weight.dim() == 2:
        return weight.t() if transposed else weight
    out, into = weight.shape[:2]
    taps = weight.shape[2:].numel()
    if transposed:
        return weight.permute(1, 2, 3, 0).reshape(into, taps * out)
    return weight.permute(0, 2, 3, 1).reshape(out, taps * into)


class PackedWeight(Packing):
    """Forward and transposed stream of one weight, packed anew only when weight or mask change.

    A change is seen by the storage, address, shape, strides, dtype and version of a tensor, and by
    up to 1,024 of its entries. What torch does in place, an optimizer step say, counts the version
    up. The entries are for what passes by the version (``weight.data``, an array that shares the
    memory): an entry of every row and of every column is among them up to 1,024 rows and columns.
    After a smaller change of that kind call :meth:`forget`.

    Threads may call at once; a stream in use is not overwritten. Copies and pickles hold nothing
    packed, and have a handle of their own.

    Args:
        pattern: of the mask, to choose the blocks; None if there is none.
        transposed: whether there is to be a stream for the input gradient.
        decide: which matmuls run sparse, see :data:`Decide`.

    Attributes:
        handle: the number by which operators find this object, for as long as it lives.
        tag: the handle as a tensor, for compiled code, to which numbers are constants.
        pattern, transposed, decide: as given; ``decide`` may be set.

    Example:
        >>> packed = PackedWeight(Pattern.parse("1:2T"))
        >>> weight, mask = torch.eye(4), torch.eye(4, dtype=torch.bool)
        >>> packed.update(weight, mask)
        >>> packed.forward.values.tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> _ = weight.mul_(2)
        >>> packed.update(weight, mask)
        >>> packed.forward.values.tolist()
        [2.0, 2.0, 2.0, 2.0]
    """

    __slots__ = (
        "__weakref__",
        "_directions",
        "_lock",
        "_process",
        "decide",
        "handle",
        "pattern",
        "tag",
        "transposed",
    )

    def __init__(
        self,
        pattern: Pattern | None = None,
        *,
        transposed: bool = True,
        decide: Decide = always_sparse,
    ) -> None:
        self.pattern = pattern
        self.transposed = transposed
        self.decide = decide
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.forget()
        self.handle, self.tag = register(self)

    def forget(self) -> None:
        """Pack everything anew at the next call: after a change that nothing else shows."""
        self._directions = {flipped: _Direction(flipped) for flipped in (False, True)}

    @property
    def forward(self) -> Stream:
        """The stream of the weight as of the last update.

        Raises:
            LayerError: if there was none.
        """
        stream = self._directions[False].stream
        if stream is None:
            raise LayerError(
                "PackedWeight.forward: nothing is packed yet; call update(weight, mask) first"
            )
        return stream

    @property
    def backward(self) -> Stream | None:
        """The stream of the transposed weight; None if there is none, or nothing is packed yet."""
        return self._directions[True].stream

    def update(self, weight: torch.Tensor, mask: torch.Tensor) -> None:
        """Make the streams those of this weight and mask: rebuilt, refilled or left, as needed.

        Args:
            weight: [out, in], or [out, in, height, width] of a convolution, see :func:`matrix`;
                float, on the CPU, any strides; pruned entries may be anything.
            mask: bool, the same shape.

        Raises:
            MaskError: if the mask is no bool tensor of the weight's shape.
            SparseFormatError: if the weight is no float tensor of two or four dimensions.
            DeviceError: if a tensor is not on the CPU.

        Complexity: O(1) when nothing changed, else a pass over the weight for each stream.
        """
        for flipped in (False, True) if self.transposed else (False,):
            with self.use(weight, mask, transposed=flipped):
                pass

    @contextmanager
    def use(
        self,
        weight: torch.Tensor | None,
        mask: torch.Tensor,
        *,
        transposed: bool = False,
    ) -> Iterator[Stream]:
        """One stream, of this weight and mask, which stays as it is within the context.

        Args:
            weight: as for :meth:`update`; None when only the positions matter.
            mask: as for :meth:`update`.
            transposed: whether to have the stream of the transposed weight.

        Raises:
            As :meth:`update`.
        """
        _check(weight, mask)
        with self._guard():
            direction = self._directions[transposed]
            stream = direction.update(weight, mask, self.pattern)
            direction.users += 1
        try:
            yield stream
        finally:
            with self._guard():
                direction.users -= 1

    def product(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        mask: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        transposed: bool = False,
    ) -> torch.Tensor:
        with self.use(weight, mask, transposed=transposed) as stream:
            return stream.matmul(x, bias)

    def weight_gradient(
        self, x: torch.Tensor, dy: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        if mask is None:
            return None
        with self.use(None, mask) as stream:
            return stream.weight_gradient(x, dy)

    def __repr__(self) -> str:
        return f"PackedWeight({self.pattern}, handle={self.handle})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        decide = copy.deepcopy(self.decide, memo)
        return type(self)(self.pattern, transposed=self.transposed, decide=decide)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.pattern, self.transposed, self.decide)

    def _guard(self) -> threading.Lock:
        if self._process != os.getpid():
            # The thread that held the lock at a fork, or used a stream, is not in this process.
            self._lock, self._process = threading.Lock(), os.getpid()
            for direction in self._directions.values():
                direction.users = 0
        return self._lock


def stream_packing(handle: torch.Tensor) -> PackedWeight:
    """What keeps streams under a handle; if that is nothing, what packs for this call only."""
    found = find_packed(int(handle))
    return found if isinstance(found, PackedWeight) else PackedWeight()


class _Direction:
    """One stream and what it was made from."""

    __slots__ = ("_mask", "_weight", "flipped", "stream", "users")

    def __init__(self, flipped: bool) -> None:
        self.flipped = flipped
        self.stream: Stream | None = None
        self.users = 0
        self._mask: Seen | None = None
        self._weight: Seen | None = None

    def update(
        self, weight: torch.Tensor | None, mask: torch.Tensor, pattern: Pattern | None
    ) -> Stream:
        if self.stream is None or self._mask is None or not self._mask.is_still(mask):
            seen = Seen(mask)  # before it is read: a change meanwhile is a change
            oriented = matrix(mask, transposed=self.flipped)
            dtype = torch.float32 if weight is None else _dtype_of_values(weight)
            blocking = Blocking.best(pattern, oriented.shape[1])
            self.stream = Stream.build(oriented, blocking, dtype)
            self._mask, self._weight = seen, None
        if weight is not None and (self._weight is None or not self._weight.is_still(weight)):
            dtype = _dtype_of_values(weight)
            seen, self._weight = Seen(weight), None
            if self.users or self.stream.values.dtype != dtype:
                self.stream = self.stream.empty_like(dtype)
            self.stream.fill(matrix(weight.detach(), transposed=self.flipped))
            self._weight = seen
        return self.stream


def _dtype_of_values(weight: torch.Tensor) -> torch.dtype:
    return torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32


def _check(weight: torch.Tensor | None, mask: torch.Tensor) -> None:
    for name, tensor in (("weight", weight), ("mask", mask)):
        if tensor is not None and tensor.device.type != "cpu":
            raise DeviceError(
                f"PackedWeight: the {name} is on {tensor.device}; streams are for the CPU: move "
                "the layer there, or run it dense"
            )
    if mask.dtype != torch.bool or mask.dim() not in (2, 4):
        raise MaskError(
            f"PackedWeight: received a mask of dtype {mask.dtype} and shape {tuple(mask.shape)}; "
            "it takes a bool matrix, or a kernel of four dimensions, True where a weight is kept"
        )
    if weight is None:
        return
    if weight.dtype not in FLOAT_DTYPES or weight.dim() not in (2, 4):
        raise SparseFormatError(
            f"PackedWeight: received a weight of {weight.dtype} and shape {tuple(weight.shape)}; "
            "it takes a float matrix [out, in] or kernel [out, in, height, width]"
        )
    if weight.shape != mask.shape:
        raise MaskError(
            f"PackedWeight: the mask is {tuple(mask.shape)} and the weight {tuple(weight.shape)}; "
            "the two must agree: find the mask of this weight, transpose either one"
        )


def _restored(
    kind: type[PackedWeight], pattern: Pattern | None, transposed: bool, decide: Decide
) -> PackedWeight:
    return kind(pattern, transposed=transposed, decide=decide)
