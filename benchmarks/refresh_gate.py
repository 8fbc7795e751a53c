"""What must hold of the masks before the refresh is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

import transposable
from benchmarks.gate import GateError
from benchmarks.training_step import APPROXIMATION, SparseTrainer
from transposable import MaskController
from transposable.nn import SparseLayer

CROP: Final = 512
"""Largest side of the corner of a linear layer that is certified: potentials of all take memory."""

Refresh = Callable[[MaskController], object]


@dataclass(slots=True)
class RefreshGate:
    """What was checked."""

    layers: int = 0
    tiles_certified: int = 0
    worst_gap: float = 0.0

    def __str__(self) -> str:
        return (
            f"gate passed: after a refresh the masks of {self.layers} layers, exact and "
            "approximate, equal find_mask's and break no pattern; the exact ones are certified on "
            f"{self.tiles_certified:,} tiles (largest duality gap {self.worst_gap:.1e})"
        )

    def as_dict(self) -> dict[str, Any]:
        """For the results file."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"summary": str(self), **fields}


def check(trainer: SparseTrainer, report: RefreshGate, refresh: Refresh | None = None) -> None:
    """Refresh with every solver that is timed, and look at each layer's mask.

    Args:
        refresh: how a controller refreshes; a test puts a broken one in its place.

    Raises:
        GateError: naming the layer.
    """
    refresh = refresh or MaskController.refresh
    for solver in (APPROXIMATION, "exact"):
        trainer.set_up(solver)
        refresh(trainer.controller)
        for name, layer in trainer.layers.items():
            where = f"{trainer.workload.name}, layer {name!r}, {layer.pattern}, {solver}"
            weight = layer.weight.detach()
            found = transposable.find_mask(
                weight, layer.pattern, solver=solver, layout=layer.layout
            )
            if not torch.equal(found.tensor, layer.mask):
                raise GateError(f"gate: {where}: the mask is not the one that find_mask finds")
            if layer.as_mask().violations():
                raise GateError(f"gate: {where}: the mask breaks its pattern")
            if solver == "exact":
                _certify(layer, where, report)
    report.layers += len(trainer.layers)


def _certify(layer: SparseLayer, where: str, report: RefreshGate) -> None:
    scores, kept = layer.weight.detach().abs(), layer.mask
    if layer.layout.name == "linear":  # whole tiles of the last corner
        side = CROP - CROP % layer.pattern.m
        scores, kept = (t[-side:, -side:] for t in (scores, kept))
    solution = transposable.solve(scores, layer.pattern, "exact", layout=layer.layout)
    assert solution.potentials is not None
    held = transposable.Mask(kept, layer.pattern, layout=layer.layout)
    certificate = transposable.certify(scores, held, solution.potentials)
    if not certificate.optimal:
        raise GateError(
            f"gate: {where}: the mask is not optimal: largest duality gap of a tile "
            f"{certificate.worst_gap:.1e}"
        )
    report.tiles_certified += certificate.tiles
    report.worst_gap = max(report.worst_gap, certificate.worst_gap)
