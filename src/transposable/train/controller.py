"""MaskController: one object that keeps masks and pruned weights as a recipe says."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from transposable.errors import CheckpointError, ControllerError, LayerError
from transposable.nn import refresh_masks, sparse_layers
from transposable.nn.sharding import check_shards, local, local_part
from transposable.solvers import Solver, make_solver
from transposable.train.history import Refresh
from transposable.train.recipes import Recipe, make_recipe
from transposable.train.schedules import Schedule, make_schedule
from transposable.train.step_hook import before_optimizer_steps

_VERSION: Final = 1


class MaskController:
    """Trains the sparse layers of a model by a recipe, with any optimizer.

        loss.backward(); opt.step(); ctl.step(); opt.zero_grad()

    Args:
        model: a model with sparse layers, see :func:`transposable.sparsify`. With ``fully_shard``,
            sparsify first, shard, then make the controller.
        recipe: a name ("static", "ste", "sr-ste", "masked-decay", "s-ste") or a recipe object.
        refresh: steps between refreshes of the masks, or a schedule object; default: the recipe's.
        solver: what finds the masks at a refresh; default the exact one.

    Raises:
        LayerError: if the model has no sparse layer.
        RecipeError: if recipe or refresh is unknown, or does not suit a layer's pattern.
        ShardingError: if a weight is cut over ranks inside a tile.

    Recipes with a term in the gradient (SR-STE, masked decay) add it once per optimizer step, just
    before the step: after accumulation, unscaling and clipping. For torch's optimizers that happens
    by itself; before the step of any other, call :meth:`before_step`.

    Example:
        >>> from transposable import sparsify
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> opt = torch.optim.AdamW(model.parameters())
        >>> changes = sparsify(model, "2:4T")
        >>> ctl = MaskController(model, recipe="sr-ste", refresh=1)
        >>> for _ in range(3):
        ...     loss = model(torch.randn(8, 16)).square().mean()
        ...     loss.backward(); opt.step(); _ = ctl.step(); opt.zero_grad()
        >>> [record.step for record in ctl.history], ctl.history[-1].gap
        ([1, 2, 3], 0.0)

    Hubara et al., NeurIPS 2021.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: str | Recipe = "static",
        refresh: int | Schedule | None = None,
        solver: str | Solver = "auto",
    ) -> None:
        self.recipe = make_recipe(recipe)
        self.schedule = self.recipe.schedule if refresh is None else make_schedule(refresh)
        self.solver = make_solver(solver)
        self.layers = sparse_layers(model)
        if not self.layers:
            raise LayerError(
                f"MaskController: {type(model).__name__} has no sparse layer; call "
                "sparsify(model, '2:4T') first"
            )
        for name, layer in self.layers.items():
            self.recipe.check(layer.pattern, name)
        check_shards(self.layers)
        self.model = model
        self.history: list[Refresh] = []
        self._step = 0
        self._applied: set[int] = set()
        self._by_hand = False
        self._reached = False
        self._versions: dict[str, int] | None = None
        for layer in self.layers.values():
            layer.straight_through = self.recipe.straight_through
        # Layers at rest come from a checkpoint of a dense tail: only a step or load_state_dict,
        # which know where the run stands, may touch them.
        if any(layer.weighting != "dense" for layer in self.layers.values()):
            self._set_weighting(self.sparse)
            if self.sparse:
                self._after_step()
        self._handle = None
        if self.recipe.changes_gradient:
            self._handle = before_optimizer_steps(self._before)

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self._step

    @property
    def sparse(self) -> bool:
        """Whether the masks are active now."""
        return self.recipe.sparse_after(self._step)

    def step(self) -> Refresh | None:
        """After each ``opt.step()``: count it, refresh the masks when due, zero what stays zero.

        Returns:
            The record of the refresh, if there was one.

        Raises:
            ScoresError: if a weight is NaN at a refresh; nothing is changed then.
            ControllerError: if an optimizer that is not torch's skipped the recipe's gradient term.
        """
        self._check_applied()
        done = self._step + 1
        sparse = self.recipe.sparse_after(done)
        waking = sparse and any(layer.weighting == "dense" for layer in self.layers.values())
        if self.sparse and not waking:
            # Of the step just done, the last before a dense tail too; and before the refresh, since
            # what an optimizer did to weights that stay zero is no score.
            self._after_step()
        record = None
        if sparse and (waking or self.schedule.due(done)):
            record = self._refresh(done)
        self._step = done
        self._set_weighting(sparse)
        if record is not None:
            self._after_step()
        self._applied.clear()
        self._by_hand = False
        self._versions = self._weight_versions()
        return record

    def refresh(self) -> Refresh:
        """Refresh the masks from the current weights now, whatever the schedule says.

        Raises:
            ScoresError: if a weight is NaN; nothing is changed then.
        """
        record = self._refresh(self._step)
        if self.sparse:
            self._after_step()
        return record

    def before_step(self) -> None:
        """Before the step of an optimizer that is not torch's: add the recipe's gradient term.

        The gradients must be complete, unscaled and clipped. With a torch optimizer the call is
        not needed, and does no harm.
        """
        self._by_hand = True
        if self.recipe.changes_gradient:
            self._add_terms(None)

    def close(self) -> None:
        """Stop adding gradient terms to optimizers' steps; the layers stay as they are."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def state_dict(self, *, gradients: bool = True) -> dict[str, Any]:
        """What a resumed run needs besides the model's and the optimizer's state dicts.

        Args:
            gradients: include the gradients that are there, so that a run stopped in the middle
                of accumulation resumes too; after ``opt.zero_grad()`` there are none.

        Returns:
            Plain types and tensors only; ``torch.load(..., weights_only=True)`` reads it.
        """
        pending = {
            name: parameter.grad.detach().clone()
            for name, parameter in self.model.named_parameters()
            if gradients and parameter.grad is not None
        }
        return {
            "version": _VERSION,
            "step": self._step,
            "recipe": _describe(self.recipe),
            "refresh": _describe(self.schedule),
            "solver": _describe(self.solver),
            "patterns": {name: str(layer.pattern) for name, layer in self.layers.items()},
            "history": [record.as_dict() for record in self.history],
            "gradients": pending,
        }

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Continue from :meth:`state_dict`; load the model's and the optimizer's states as well.

        Args:
            strict: recipe, refresh schedule and solver must be those of the saved run.

        Raises:
            CheckpointError: if the state is of another model, pattern or recipe; nothing is
                changed then.
        """
        self._check_state(state, strict)
        self._step = state["step"]
        self.history = [Refresh(**record) for record in state["history"]]
        self._set_weighting(self.sparse)
        parameters = dict(self.model.named_parameters())
        for name, gradient in state["gradients"].items():
            parameters[name].grad = gradient.detach().clone().to(parameters[name].device)
        self._applied.clear()
        self._by_hand = False
        self._versions = None

    def _check_state(self, state: dict[str, Any], strict: bool) -> None:
        if state.get("version") != _VERSION:
            raise CheckpointError(
                "MaskController.load_state_dict: the state has version "
                f"{state.get('version')!r}, and this release reads version {_VERSION}; give the "
                "result of MaskController.state_dict()"
            )
        patterns = {name: str(layer.pattern) for name, layer in self.layers.items()}
        for name in [*patterns, *state["patterns"]]:
            here, there = patterns.get(name, "dense"), state["patterns"].get(name, "dense")
            if here != there:
                raise CheckpointError(
                    f"MaskController.load_state_dict: layer {name!r} is {here} in this model and "
                    f"{there} in the checkpoint; sparsify the model as the saved run did"
                )
        settings = {"recipe": self.recipe, "refresh": self.schedule, "solver": self.solver}
        for key, setting in settings.items():
            if strict and state[key] != _describe(setting):
                raise CheckpointError(
                    f"MaskController.load_state_dict: the {key} is {_describe(setting)}, and the "
                    f"saved run had {state[key]}; make the controller as the saved run did, or "
                    "pass strict=False to go on differently"
                )
        unknown = set(state["gradients"]) - {name for name, _ in self.model.named_parameters()}
        if unknown:
            raise CheckpointError(
                "MaskController.load_state_dict: the state has a gradient of "
                f"{min(unknown)!r}, which the model does not have; load it into the model it came "
                "from"
            )

    def _refresh(self, step: int) -> Refresh:
        done = refresh_masks(self.layers, self.solver)
        record = Refresh(step, done.flip_rate, done.kept, done.gap, done.seconds)
        self.history.append(record)
        return record

    def _set_weighting(self, sparse: bool) -> None:
        for layer in self.layers.values():
            layer.weighting = self.recipe.weighting if sparse else "dense"

    def _after_step(self) -> None:
        if not self.recipe.changes_weight:
            return
        with torch.no_grad():
            for layer in self.layers.values():
                self.recipe.after_step(local(layer.weight), local_part(layer.mask, layer.weight))

    def _before(self, optimizer: Optimizer, again: bool) -> None:
        if self._by_hand:
            return
        parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
        # Fused optimizers unscale inside their kernel.
        scale = getattr(optimizer, "grad_scale", None)
        if again:  # the closure has made new gradients
            self._applied -= parameters
        self._add_terms(parameters, scale)
        self._reached |= bool(self._applied)

    def _add_terms(self, parameters: set[int] | None, scale: Any = None) -> None:
        if not self.sparse:
            return
        seen = set()
        with torch.no_grad():
            for name, layer in self.layers.items():
                weight = layer.weight
                if parameters is not None and id(weight) not in parameters:
                    continue
                if weight.grad is None or id(weight) in seen:
                    continue
                if id(weight) in self._applied:
                    raise ControllerError(
                        f"MaskController: a second optimizer step for layer {name!r} without "
                        "ctl.step() in between; call ctl.step() after each opt.step(), or "
                        "ctl.close() when the recipe has ended"
                    )
                seen.add(id(weight))
                gradient = local(weight.grad)
                if scale is not None:
                    gradient.div_(scale)
                self.recipe.before_step(
                    local(weight), gradient, local_part(layer.mask, layer.weight)
                )
                if scale is not None:
                    gradient.mul_(scale)
        self._applied |= seen

    def _check_applied(self) -> None:
        # Once the hook has reached an optimizer, a step without it is one that a gradient scaler
        # skipped, even where something else (an average swapped in) has written to the weights.
        if self._applied or self._reached or self._versions is None or not self.sparse:
            return
        if not self.recipe.changes_gradient or self._handle is None:
            return
        # A step that a gradient scaler skipped leaves the weights as they were.
        now = self._weight_versions()
        if now != self._versions:
            changed = next(name for name in now if now[name] != self._versions.get(name))
            raise ControllerError(
                f"MaskController.step: layer {changed!r} changed, and its optimizer did not "
                f"receive the gradient term of {_describe(self.recipe)}; call ctl.before_step() "
                "right before the step of an optimizer that is not a torch.optim.Optimizer"
            )

    def _weight_versions(self) -> dict[str, int]:
        return {
            name: layer.weight._version
            for name, layer in self.layers.items()
            if layer.weight.requires_grad
        }


def _describe(value: object) -> str:
    """A text by which two runs are compared: options included, addresses not."""
    return repr(value) if dataclasses.is_dataclass(value) else type(value).__qualname__
