"""What carries out the matmul of a sparse layer; the layer asks, and does not choose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from transposable.errors import LayerError

if TYPE_CHECKING:
    from transposable.nn.layer import SparseLayer


class Backend(ABC):
    """Runs sparse layers, forward and backward; it is pickled and copied along with them.

    A back end that keeps something packed must notice by itself that the mask or the weight of a
    layer has changed: a refresh writes into ``layer.mask`` in place.

    Example:
        >>> DENSE_MASKED.name
        'dense_masked'
    """

    name: ClassVar[str]

    @abstractmethod
    def refuses(self, layer: SparseLayer) -> str | None:
        """Why this back end cannot run the layer (shape, pattern, dtype, device), or None."""

    def for_layer(self, layer: SparseLayer) -> Backend:
        """The object that is to run this layer: itself, or one of the layer's own."""
        return self

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

    Args:
        layers: sparse layers by name, see :func:`transposable.nn.sparse_layers`.
        backend: what is to run them; a layer may get an object of its own, see
            :meth:`Backend.for_layer`.

    Returns:
        The reason by name for each layer that was refused; such a layer still trains.

    Raises:
        LayerError: if ``layers`` is not such a mapping, or ``backend`` no :class:`Backend`.

    Example:
        >>> from torch import nn
        >>> from transposable.nn import sparse_layers, sparsify
        >>> model = nn.Linear(16, 16)
        >>> changes = sparsify(model, "2:4T")
        >>> use_backend(sparse_layers(model), DENSE_MASKED)
        {}
    """
    if not isinstance(layers, Mapping) or not isinstance(backend, Backend):
        raise LayerError(
            f"use_backend: received a {type(layers).__name__} and a {type(backend).__name__}; it "
            "takes the layers by name and a Backend object: use_backend(sparse_layers(model), ...)"
        )
    reasons = {name: backend.refuses(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.backend = backend.for_layer(layer) if reasons[name] is None else DENSE_MASKED
    return {name: reason for name, reason in reasons.items() if reason is not None}
