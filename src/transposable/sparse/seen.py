"""What a tensor was like when something was made from it: so that a change is noticed."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final

import torch
from torch.multiprocessing.reductions import StorageWeakRef

SAMPLES: Final = 1024
"""Entries of a tensor that are compared to see a change that torch has not counted."""

_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Seen:
    """A tensor as it was, by everything that tells without reading all of it.

    Args:
        tensor: what is looked at.
        sampled: whether some entries are read; on a GPU that would wait for it.
    """

    __slots__ = ("_bits", "_storage", "_traits")

    def __init__(self, tensor: torch.Tensor, *, sampled: bool = True) -> None:
        # A weak reference keeps the number of the storage from being given to another one.
        self._storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._traits = traits(tensor)
        self._bits = _sample(tensor) if sampled else None

    def is_still(self, tensor: torch.Tensor) -> bool:
        """Whether nothing that was looked at has changed."""
        if tensor.is_inference() or self._traits != traits(tensor):
            return False
        return self._bits is None or torch.equal(self._bits, _sample(tensor))


def traits(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Where a tensor lies, how, and how often it was written."""
    return (
        tensor.untyped_storage()._cdata,
        tensor.data_ptr(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        None if tensor.is_inference() else tensor._version,
    )


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Up to SAMPLES entries as integers, which have no NaN."""
    at = _lattice(*tensor.shape)
    return tensor.detach()[at].view(_BITS[tensor.element_size()])


@lru_cache(maxsize=256)
def _lattice(rows: int, *inner: int) -> tuple[torch.Tensor, ...]:
    """Places spread over a matrix: all if it is small, else in as many rows and columns as can.

    All dimensions but the first count as its columns.
    """
    cols = math.prod(inner)
    with torch.inference_mode(False):
        number = torch.arange(min(rows * cols, SAMPLES))
        if rows * cols <= SAMPLES:
            row, col = number // max(cols, 1), number % max(cols, 1)
        else:
            # 633 has no factor in common with 1,024, and is near its golden section.
            row, col = number * rows // SAMPLES, number * 633 % SAMPLES * cols // SAMPLES
        return row, *torch.unravel_index(col, inner)
