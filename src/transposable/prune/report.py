"""What prune_model did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One pruned layer and its figures.

    Attributes:
        name, shape: as in the model.
        pattern: as text.
        method: what pruned it.
        kept: share of the weights that the mask keeps, by number.
        magnitude: share of the dense weights that the mask keeps, by the sum of magnitudes.
        violated: share of the pattern's constraints (groups of M along the axes it promises) that
            the weights violated before, and that were repaired.
        error_masked: mean squared error of the layer's output right after masking, relative to
            the mean square of the output that was wanted; None without calibration data.
        error: the same after the method's update of weights and bias.
        samples: number of inputs (tokens, positions) that the figures are of.
        seconds: for the calibration of this layer, and for pruning it.
        note: what is particular about this layer.
        info: what the method has to say.
        mask: bool, in the shape of the weight.
    """

    name: str
    shape: tuple[int, ...]
    pattern: str
    method: str
    kept: float
    magnitude: float
    violated: float
    error_masked: float | None
    error: float | None
    samples: int
    seconds: tuple[float, float]
    note: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    mask: torch.Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """All but the mask."""
        document = {name: getattr(self, name) for name in self.__slots__ if name != "mask"}
        return {**document, "shape": list(self.shape), "seconds": list(self.seconds)}


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What :func:`prune_model` did.

    Attributes:
        method, mode, batchnorm: as chosen.
        layers: one record a layer, in the order in which they were pruned.
        samples, batches: how much calibration data was used.
        batch_norms: names of the batch norms whose statistics were adapted.
        seconds: in all.
        notes: what the user should know.

    Example:
        >>> from torch import nn
        >>> from transposable.prune import prune_model
        >>> report = prune_model(nn.Sequential(nn.Linear(16, 8)), "2:4T", "magnitude")
        >>> report.masks["0"].shape, report.layers[0].kept, report.error is None
        (torch.Size([8, 16]), 0.5, True)
    """

    method: str
    mode: str
    batchnorm: str
    layers: tuple[LayerReport, ...]
    samples: int
    batches: int
    batch_norms: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The mask of each layer, in the shape of its weight."""
        return {layer.name: layer.mask for layer in self.layers}

    @property
    def error(self) -> float | None:
        """Mean relative error of the layers' outputs, None without calibration data."""
        return _mean([layer.error for layer in self.layers])

    @property
    def error_masked(self) -> float | None:
        """The same right after masking."""
        return _mean([layer.error_masked for layer in self.layers])

    def to_json(self) -> dict[str, Any]:
        """All figures, without the masks."""
        document = {name: getattr(self, name) for name in self.__slots__}
        layers = [layer.to_json() for layer in self.layers]
        return {
            **document,
            "layers": layers,
            "error": self.error,
            "error_masked": self.error_masked,
        }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
