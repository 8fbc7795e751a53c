"""Handles: the numbers by which operators find what is packed of a layer's weight."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Final
from weakref import WeakValueDictionary

import torch

from transposable.sparse.choice import Choice, Decide, DecidesByDevice


class Packing(ABC):
    """A weight that is kept packed between calls, and its products; of one layer.

    Attributes:
        handle: the number by which operators find this object, for as long as it lives.
        tag: the handle as a tensor, for compiled code, to which numbers are constants.
        decide: which matmuls run sparse, see :data:`~transposable.sparse.Decide`.
    """

    __slots__ = ()

    handle: int
    tag: torch.Tensor
    decide: Decide

    def decision(self, x: torch.Tensor) -> Choice:
        """What runs sparse for an input [..., in] or a gradient [..., out]."""
        tokens = x.shape[:-1].numel()
        if isinstance(self.decide, DecidesByDevice):
            return self.decide.on(x.device, tokens, x.dtype)
        return self.decide(tokens, x.dtype)

    @abstractmethod
    def product(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        mask: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        transposed: bool = False,
    ) -> torch.Tensor | None:
        """x (S * W)^T + b, or with ``transposed`` x (S * W); None if it has to be dense."""

    @abstractmethod
    def weight_gradient(
        self, x: torch.Tensor, dy: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """S * (dy^T x), or all of it without a mask; None if it has to be dense."""

    @abstractmethod
    def forget(self) -> None:
        """Pack everything anew at the next call: after a change that nothing else shows."""


def register(packing: Packing) -> tuple[int, torch.Tensor]:
    """A new handle for this object, and its tag."""
    handle = next(_HANDLES)
    _PACKED[handle] = packing
    with torch.inference_mode(False):  # autograd saves it
        return handle, torch.tensor(handle, device="cpu")


def find_packed(handle: int) -> Packing | None:
    """The living object of a handle, or None.

    Example:
        >>> find_packed(0) is None
        True
    """
    return _PACKED.get(handle)


_HANDLES: Final = itertools.count(1)
_PACKED: Final[WeakValueDictionary[int, Packing]] = WeakValueDictionary()
