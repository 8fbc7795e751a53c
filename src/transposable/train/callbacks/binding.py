"""The controller of a callback: made when a training run starts, or given ready."""

from __future__ import annotations

from typing import Any

from torch import nn

from transposable.errors import ControllerError
from transposable.solvers import Solver, make_solver
from transposable.train.controller import MaskController
from transposable.train.history import Refresh
from transposable.train.recipes import Recipe, make_recipe
from transposable.train.schedules import Schedule, make_schedule


class Binding:
    """Settings of a controller that becomes one when the model is there, or a ready controller.

    Raises:
        RecipeError: if recipe or refresh is unknown.
        SolverError: if the solver is.
        ControllerError: if settings come with a ready controller, which has its own.
    """

    def __init__(
        self,
        recipe: str | Recipe,
        refresh: int | Schedule | None,
        solver: str | Solver,
        controller: MaskController | None,
    ) -> None:
        if controller is not None and (recipe, refresh, solver) != ("static", None, "auto"):
            raise ControllerError(
                f"SparsityCallback: received recipe={recipe!r}, refresh={refresh!r}, "
                f"solver={solver!r} and a controller, which has its own; give one or the other"
            )
        self._recipe = make_recipe(recipe)
        self._refresh = None if refresh is None else make_schedule(refresh)
        self._solver = make_solver(solver)
        self._ready = controller is not None
        self._controller = controller

    @property
    def held(self) -> MaskController | None:
        """The controller, if there is one yet."""
        return self._controller

    @property
    def controller(self) -> MaskController:
        """The controller.

        Raises:
            ControllerError: before the first run, if none was given.
        """
        if self._controller is None:
            raise ControllerError(
                "SparsityCallback.controller: there is none before training starts; read it during "
                "or after training, or make it yourself and give it as controller="
            )
        return self._controller

    def start(self, model: nn.Module, state: dict[str, Any] | None) -> MaskController:
        """The controller for a run of this model, which goes on from ``state`` unless it is None.

        Raises:
            LayerError: if the model has no sparse layer.
            ControllerError: if a ready controller is of another model.
            CheckpointError: if the state is of another model, pattern or recipe.
        """
        if self._ready:
            self._check_model(model)
        else:
            self.end()
            self._controller = MaskController(model, self._recipe, self._refresh, self._solver)
        if state is not None:
            self.controller.load_state_dict(state)
        return self.controller

    def end(self) -> None:
        """Stop a controller that was made here; it can still be read."""
        if self._controller is not None and not self._ready:
            self._controller.close()

    def _check_model(self, model: nn.Module) -> None:
        modules = {id(module) for module in model.modules()}
        for name, layer in self.controller.layers.items():
            if id(layer) not in modules:
                raise ControllerError(
                    f"SparsityCallback: layer {name!r} of the controller is not in the "
                    f"{type(model).__name__} that is trained; make the controller of this very "
                    "model (a copy has other layers), or give the callback a recipe instead"
                )


class ControlledCallback:
    """What the callbacks share: what they are made with, and their controller."""

    def __init__(
        self,
        recipe: str | Recipe = "static",
        refresh: int | Schedule | None = None,
        solver: str | Solver = "auto",
        *,
        controller: MaskController | None = None,
    ) -> None:
        self._binding = Binding(recipe, refresh, solver, controller)

    @property
    def controller(self) -> MaskController:
        """The controller of the current or the last run.

        Raises:
            ControllerError: before the first run, if none was given.
        """
        return self._binding.controller


def figures(record: Refresh) -> dict[str, float]:
    """What goes into the log of a framework."""
    return {
        "mask_flip_rate": record.flip_rate,
        "mask_kept": record.kept,
        "mask_gap": record.gap,
    }
