"""The formats of packed 2:4 weights: the readable one, cuSPARSELt's and CUTLASS's."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import torch
from torch.nn import functional as F

from transposable.sparse.semi import probe
from transposable.sparse.semi.operand import (
    DTYPES,
    GROUP,
    KEPT,
    Algorithm,
    Operand,
    aligned,
    filled_up,
    masked,
)

MOST_ALGORITHMS: Final = 128
"""Identifiers that are tried at most, whatever the library says of itself."""

UNKNOWN_ALGORITHMS: Final = 40
"""Identifiers that are tried where the library does not say how many it has."""


class Format(ABC):
    """How a 2:4 matrix is packed and multiplied. Objects have no state.

    Attributes:
        name: of the back end.
        multiple: of which both sides of the matrix must be multiples.
        dtypes: of its products.
    """

    name: ClassVar[str]
    multiple: ClassVar[int]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = DTYPES

    @abstractmethod
    def why_not(self, device: torch.device) -> str | None:
        """Why this format does not run on a device, or None if it does."""

    @abstractmethod
    def pack(
        self,
        weight: torch.Tensor,
        mask: torch.Tensor,
        dtype: torch.dtype,
        *,
        transposed: bool,
        good: torch.Tensor | None = None,
    ) -> Operand:
        """S * W, or its transpose, which must have at most two of every four in each row.

        Args:
            weight: [out, in], sides multiples of :attr:`multiple`.
            mask: bool, the same shape.
            dtype: of the products.
            transposed: whether to pack W^T.
            good: a 0-d bool; where it is False the first row becomes NaN.
        """

    @abstractmethod
    def matmul(
        self,
        operand: Operand,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        algorithm: Algorithm,
    ) -> torch.Tensor:
        """x A^T + b: [tokens, cols] to a contiguous [tokens, rows], in the dtype of x.

        Args:
            operand: A, [rows, cols].
            x: [tokens, cols], tokens at least 1, any strides.
            bias: [rows] or None.
            algorithm: one of :meth:`algorithms`.
        """

    @abstractmethod
    def left_matmul(self, operand: Operand, b: torch.Tensor, algorithm: Algorithm) -> torch.Tensor:
        """A B: [cols, size] to a contiguous [rows, size], size a multiple of 8.

        Args:
            operand: A, [rows, cols].
            b: [cols, size], contiguous.
            algorithm: one of :meth:`algorithms`.
        """

    def algorithms(
        self, operand: Operand, x: torch.Tensor, bias: torch.Tensor | None, *, left: bool = False
    ) -> Iterator[Algorithm]:
        """What a tuner has to choose from; some of them may raise.

        Args:
            operand: the packed factor.
            x: the dense one, as :meth:`matmul` takes it, or :meth:`left_matmul` with ``left``.
            bias: as for :meth:`matmul`.
            left: which product it is.
        """
        yield Algorithm()


class Reference(Format):
    """The readable twin, for any device: two values and two places of every four.

    Example:
        >>> mask = torch.tensor([[False, True, False, True]])
        >>> weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> packed = REFERENCE.pack(weight, mask, torch.float32, transposed=False)
        >>> packed.values.tolist(), packed.meta.tolist()
        ([[2.0, 4.0]], [[1, 3]])
        >>> unpacked(packed).tolist()
        [[0.0, 2.0, 0.0, 4.0]]
    """

    name: ClassVar[str] = "reference"
    multiple: ClassVar[int] = GROUP
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (*DTYPES, torch.float32, torch.float64)

    def why_not(self, device: torch.device) -> str | None:
        return None

    def pack(
        self,
        weight: torch.Tensor,
        mask: torch.Tensor,
        dtype: torch.dtype,
        *,
        transposed: bool,
        good: torch.Tensor | None = None,
    ) -> Operand:
        values = masked(weight, mask, dtype, transposed=transposed, good=good)
        rows, cols = values.shape
        kept = (mask.t() if transposed else mask).reshape(rows, cols // GROUP, GROUP)
        # Stable: the kept ones in their order, then pruned ones to make two.
        places = kept.to(torch.uint8).argsort(stable=True, dim=-1, descending=True)[..., :KEPT]
        places = places.sort(-1).values
        held = values.reshape(rows, cols // GROUP, GROUP).gather(-1, places)
        size = (rows, cols // GROUP * KEPT)
        meta = places.to(torch.uint8).reshape(size)
        return Operand(held.reshape(size).contiguous(), meta.contiguous(), rows, cols)

    def matmul(
        self,
        operand: Operand,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        algorithm: Algorithm,
    ) -> torch.Tensor:
        tokens = x.shape[0]
        y = F.linear(filled_up(x), unpacked(operand), bias)
        return y[:tokens]

    def left_matmul(self, operand: Operand, b: torch.Tensor, algorithm: Algorithm) -> torch.Tensor:
        return unpacked(operand) @ b


class CuSparseLt(Format):
    """NVIDIA's cuSPARSELt through torch: Ampere and later, Hopper included."""

    name: ClassVar[str] = "cusparselt"
    multiple: ClassVar[int] = 16

    def why_not(self, device: torch.device) -> str | None:
        return probe.why_no_cusparselt(device)

    def pack(
        self,
        weight: torch.Tensor,
        mask: torch.Tensor,
        dtype: torch.dtype,
        *,
        transposed: bool,
        good: torch.Tensor | None = None,
    ) -> Operand:
        values = masked(weight, mask, dtype, transposed=transposed, good=good)
        rows, cols = values.shape
        # It takes the entries that are not 0, whatever their size: nothing is chosen again.
        packed = torch._cslt_compress(values)
        # Older releases return one row of 9 / 16 of the entries.
        return Operand(packed.reshape(rows, -1), _none(values), rows, cols)

    def matmul(
        self,
        operand: Operand,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        algorithm: Algorithm,
    ) -> torch.Tensor:
        tokens = x.shape[0]
        fused = bias if algorithm.fused_bias else None
        # (A x^T)^T: with the result transposed it is [tokens, rows], and contiguous.
        y: torch.Tensor = torch._cslt_sparse_mm(
            operand.values,
            filled_up(x).t(),
            bias=None if fused is None else aligned(fused),
            transpose_result=True,
            alg_id=algorithm.alg_id,
            **_split(algorithm),
        )
        if bias is not None and fused is None:
            y = y.add_(bias)
        return y[:tokens]

    def left_matmul(self, operand: Operand, b: torch.Tensor, algorithm: Algorithm) -> torch.Tensor:
        y: torch.Tensor = torch._cslt_sparse_mm(
            operand.values, aligned(b), alg_id=algorithm.alg_id, **_split(algorithm)
        )
        return y

    def algorithms(
        self, operand: Operand, x: torch.Tensor, bias: torch.Tensor | None, *, left: bool = False
    ) -> Iterator[Algorithm]:
        number, split = self._search(operand, x if left else filled_up(x).t(), bias, not left)
        ways = (True,) if bias is None else (True, False)
        for fused in ways:
            for alg_id in range(number):
                yield Algorithm(alg_id, fused_bias=fused)
            if split is not None:
                yield Algorithm(*split, fused_bias=fused)

    def _search(
        self, operand: Operand, b: torch.Tensor, bias: torch.Tensor | None, transposed: bool
    ) -> tuple[int, tuple[int, int, int] | None]:
        """How many algorithms there are, and the library's own choice where that splits sums."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch._C._cusparselt.mm_search(  # type: ignore[attr-defined]
                    operand.values, b, bias, None, None, transposed
                )
            alg_id, split_k, mode, number = (int(each) for each in found)
        except (RuntimeError, AttributeError, TypeError, ValueError):
            return UNKNOWN_ALGORITHMS, None
        number = min(number, MOST_ALGORITHMS) if number > 0 else UNKNOWN_ALGORITHMS
        return number, (alg_id, split_k, mode) if split_k > 1 else None


class Cutlass(Format):
    """CUTLASS kernels of torch, on Ampere only: what is left where cuSPARSELt is missing."""

    name: ClassVar[str] = "cutlass"
    multiple: ClassVar[int] = 64

    def why_not(self, device: torch.device) -> str | None:
        return probe.why_no_cutlass(device)

    def pack(
        self,
        weight: torch.Tensor,
        mask: torch.Tensor,
        dtype: torch.dtype,
        *,
        transposed: bool,
        good: torch.Tensor | None = None,
    ) -> Operand:
        values = masked(weight, mask, dtype, transposed=transposed, good=good)
        rows, cols = values.shape
        # By magnitude it selects what is there: the pruned entries are 0, and all others fit. (The
        # algorithm "" would rank signed values.)
        packed, meta, *_ = torch._sparse_semi_structured_tile(
            values, "largest_abs_values_greedy", True
        )
        # A NaN has no rank: its row must not lose it.
        finite = torch.where(values.isfinite().all(1), 0.0, torch.nan)
        return Operand(packed.add_(finite[:, None]), meta, rows, cols)

    def matmul(
        self,
        operand: Operand,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        algorithm: Algorithm,
    ) -> torch.Tensor:
        tokens = x.shape[0]
        dense = filled_up(x).t()
        if bias is None:
            y = torch._sparse_semi_structured_mm(operand.values, operand.meta, dense)
        else:
            y = torch._sparse_semi_structured_addmm(bias, operand.values, operand.meta, dense)
        # The kernel writes [rows, tokens].
        return y.t()[:tokens].contiguous()

    def left_matmul(self, operand: Operand, b: torch.Tensor, algorithm: Algorithm) -> torch.Tensor:
        y: torch.Tensor = torch._sparse_semi_structured_mm(operand.values, operand.meta, b)
        return y


def unpacked(operand: Operand) -> torch.Tensor:
    """The matrix [rows, cols] of an operand of :class:`Reference`."""
    groups = operand.rows, operand.cols // GROUP
    values = operand.values.reshape(*groups, KEPT)
    dense = values.new_zeros(*groups, GROUP)
    dense.scatter_(-1, operand.meta.reshape(*groups, KEPT).long(), values)
    return dense.reshape(operand.rows, operand.cols)


def _split(algorithm: Algorithm) -> dict[str, Any]:
    if algorithm.split_k == 1:
        return {}
    return {"split_k": algorithm.split_k, "split_k_mode": algorithm.split_k_mode}


def _none(like: torch.Tensor) -> torch.Tensor:
    return like.new_empty(0, dtype=torch.uint8)


REFERENCE: Final = Reference()
CUSPARSELT: Final = CuSparseLt()
CUTLASS: Final = Cutlass()
FORMATS: Final[dict[str, Format]] = {each.name: each for each in (CUSPARSELT, CUTLASS, REFERENCE)}
"""By name; the first that runs on a device is its default."""


def format_on(device: torch.device, name: str | None = None) -> Format | str:
    """A format by its name, or the best, if it runs on a device; else why not."""
    if name is None or name == "auto":
        return best_format(device)
    chosen = FORMATS[name]
    return chosen.why_not(device) or chosen


def best_format(device: torch.device) -> Format | str:
    """The format that runs on a device, or why none does.

    Example:
        >>> best_format(torch.device("cpu"))
        'device cpu: sparse tensor cores are those of NVIDIA GPUs'
    """
    reasons = []
    for one in (CUSPARSELT, CUTLASS):
        reason = one.why_not(device)
        if reason is None:
            return one
        reasons.append(reason)
    return reasons[0]
