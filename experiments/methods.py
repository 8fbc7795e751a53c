"""How the weights of a network are kept sparse during training: the configurations of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from transposable import MaskController, sparsify, verify
from transposable.prune import AdaPrune, prune_model
from transposable.train import Recipe, Refresh, Static

CALIBRATION = 1000
"""Training samples that AdaPrune is given."""
START = AdaPrune(ridge=1e-2)


@dataclass(frozen=True)
class Method:
    """One configuration; without a pattern the network stays dense."""

    name: str
    pattern: str | None = None
    recipe: Recipe = field(default_factory=Static)
    refresh: int | None = None
    solver: str = "auto"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the experiment that this configuration has otherwise: a longer schedule."""
    calibrated: bool = False
    """Whether AdaPrune prunes the network before the training, not the magnitude alone."""

    def settings(self) -> dict[str, Any]:
        """Everything that a run's result depends on, as text and numbers."""
        if self.pattern is None:
            return {"pattern": None}
        return {
            "pattern": self.pattern,
            "recipe": repr(self.recipe),
            "refresh": self.refresh,
            "solver": self.solver,
            **({"start": repr(START)} if self.calibrated else {}),
        }

    def attach(
        self,
        net: nn.Module,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        calibration: Sequence[Any] = (),
    ) -> MaskController | None:
        """Make the network sparse and return its controller, None for the dense one."""
        if self.pattern is None:
            return None
        if self.calibrated:
            prune_model(
                net,
                self.pattern,
                START,
                calibration,
                include=include,
                exclude=exclude,
                samples=CALIBRATION,
            )
            # The masks that sparsify finds now are those of AdaPrune: all else is zero.
        sparsify(net, self.pattern, include=include, exclude=exclude, solver=self.solver)
        return MaskController(net, recipe=self.recipe, refresh=self.refresh, solver=self.solver)


def references(methods: Sequence[Method]) -> dict[str, str]:
    """What each configuration is compared with: the dense one with the same changes.

    Raises:
        ValueError: if there is no such configuration, or more than one.
    """
    found = {}
    for method in methods:
        dense = [m.name for m in methods if m.pattern is None and m.changes == method.changes]
        if len(dense) != 1:
            raise ValueError(
                f"{method.name!r} has {len(dense)} dense configurations with its changes "
                f"{dict(method.changes)} to be compared with; give it one"
            )
        found[method.name] = dense[0]
    return found


def refreshes(
    controller: MaskController | None, steps_per_epoch: int, seconds: float
) -> dict[str, Any]:
    """Means over each epoch's refreshes, and the share of the training time that they took."""
    if controller is None or not controller.history:
        return {}
    epochs: dict[int, list[Refresh]] = {}
    for record in controller.history:
        epochs.setdefault((record.step - 1) // steps_per_epoch, []).append(record)

    def means(name: str) -> list[float]:
        return [
            round(sum(getattr(r, name) for r in records) / len(records), 6)
            for records in epochs.values()
        ]

    spent = sum(record.seconds for record in controller.history)
    return {
        "refreshes": len(controller.history),
        "flip_rate": means("flip_rate"),
        "kept": means("kept"),
        "gap": means("gap"),
        "refresh_share": round(spent / seconds, 6),
    }


def sparse_weights(controller: MaskController | None) -> dict[str, int]:
    """Number of sparse layers, each of whose weights, as the network uses them, was verified.

    Raises:
        RuntimeError: if a weight does not have its pattern; after a dense tail it need not.
    """
    if controller is None or not controller.sparse:
        return {"verified_layers": 0}
    for name, layer in controller.layers.items():
        report = verify(layer.effective_weight().detach(), layer.pattern, layout=layer.layout)
        if not report:
            raise RuntimeError(f"{name} does not satisfy {layer.pattern}:\n{report}")
    return {"verified_layers": len(controller.layers)}
