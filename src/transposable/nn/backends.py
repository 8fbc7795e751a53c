"""What carries out the matmul of a sparse layer; the layer asks, and does not choose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from transposable.nn.layer import SparseLayer


class Backend(ABC):
    """Runs sparse layers, forward and backward; stateless or picklable.

    Example:
        >>> DENSE_MASKED.name
        'dense_masked'
    """

    name: ClassVar[str]

    @abstractmethod
    def refuses(self, layer: SparseLayer) -> str | None:
        """Why this back end cannot run the layer (shape, pattern, dtype, device), or None."""

    @abstractmethod
    def run(self, layer: SparseLayer, x: torch.Tensor) -> torch.Tensor:
        """The layer's output for x, differentiable as the layer's recipe asks."""


class DenseMasked(Backend):
    """The dense operator of the layer on its effective weight: every layer, every device."""

    name: ClassVar[str] = "dense_masked"

    def refuses(self, layer: SparseLayer) -> str | None:
        return None

    def run(self, layer: SparseLayer, x: torch.Tensor) -> torch.Tensor:
        return layer.dense_forward(x, layer.effective_weight())


DENSE_MASKED = DenseMasked()


def use_backend(layers: Mapping[str, SparseLayer], backend: Backend) -> dict[str, str]:
    """Let a back end run these layers; those that it refuses run dense-masked.

    Returns:
        The reason by name for each layer that was refused; such a layer still trains.
    """
    refused = {}
    for name, layer in layers.items():
        reason = backend.refuses(layer)
        if reason is not None:
            refused[name] = reason
        layer.backend = backend if reason is None else DENSE_MASKED
    return refused
