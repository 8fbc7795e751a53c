"""Choice: which of the three matmuls of a layer run sparse, and what decides it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the three matmuls of a layer run sparse; the others run dense-masked.

    Attributes:
        forward: y = x W~^T.
        input_gradient: dx = dy W~.
        weight_gradient: dW = dy^T x at the kept positions; dense anyway where pruned weights
            receive a gradient.

    Example:
        >>> Choice(weight_gradient=False)
        Choice(forward=True, input_gradient=True, weight_gradient=False)
    """

    forward: bool = True
    input_gradient: bool = True
    weight_gradient: bool = True

    @property
    def any(self) -> bool:
        """Whether anything runs sparse."""
        return self.forward or self.input_gradient or self.weight_gradient


Decide = Callable[[int, torch.dtype], Choice]
"""What runs sparse for a number of tokens (rows of x, pixels of a convolution's output) of a dtype;
asked at every call."""


def always_sparse(tokens: int, dtype: torch.dtype) -> Choice:
    """All three matmuls sparse, whatever the input.

    Example:
        >>> always_sparse(256, torch.float32).forward
        True
    """
    return Choice()


class DecidesByDevice(ABC):
    """A :data:`Decide` that knows more when it is told where."""

    @abstractmethod
    def on(self, device: torch.device, tokens: int, dtype: torch.dtype) -> Choice:
        """What runs sparse for a number of tokens of a dtype on a device."""

    @abstractmethod
    def __call__(self, tokens: int, dtype: torch.dtype) -> Choice:
        """The same for the device that is current."""


DENSE: Final = Choice(forward=False, input_gradient=False, weight_gradient=False)
"""Nothing sparse."""
