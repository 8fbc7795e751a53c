"""MaskController: one object that keeps masks and pruned weights as a recipe says."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from transposable.errors import ControllerError, LayerError, ShardingError
from transposable.nn import SparseLayer, refresh_masks, sparse_layers
from transposable.nn.sharding import (
    agree,
    check_all_reduced,
    check_shards,
    has_shards,
    is_sharded,
    local,
    local_part,
    reshard,
)
from transposable.solvers import Solver, make_solver
from transposable.train.gradients import GradientTerms
from transposable.train.history import Refresh
from transposable.train.recipes import Recipe, make_recipe
from transposable.train.schedules import Schedule, make_schedule
from transposable.train.state import (
    VERSION,
    describe,
    history_columns,
    pending_gradients,
    plain_names,
    put_gradients,
    read_state,
)
from transposable.train.step_hook import StepHook

# Two controllers of one layer would both add their gradient terms: the newer one takes it over.
_OWNERS: Final[weakref.WeakKeyDictionary[SparseLayer, weakref.ref[MaskController]]] = (
    weakref.WeakKeyDictionary()
)


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
        self.model = _bare(model)
        self._has_shards = has_shards(self.model)
        self._reshard()
        self.layers: dict[str, SparseLayer] = plain_names(sparse_layers(self.model).items())
        if not self.layers:
            raise LayerError(
                f"MaskController: {type(self.model).__name__} has no sparse layer; call "
                "sparsify(model, '2:4T') first"
            )
        for name, layer in self.layers.items():
            self.recipe.check(layer.pattern, name)
        check_shards(self.layers)
        agree(self.layers)
        self.history: list[Refresh] = []
        self._step = 0
        self._terms = GradientTerms(self.recipe, self.layers)
        self._sharded = {name: is_sharded(ly.weight) for name, ly in self.layers.items()}
        for layer in self.layers.values():
            layer.straight_through = self.recipe.straight_through
        # Layers at rest come from a checkpoint of a dense tail: only a step or load_state_dict,
        # which know where the run stands, may touch them.
        if any(layer.weighting != "dense" for layer in self.layers.values()):
            self._set_weighting(self.sparse)
            if self.sparse:
                self._after_step()
        self._take_over()

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
        self._check_ready("step")
        self._terms.check(self.sparse)
        done = self._step + 1
        sparse = self.recipe.sparse_after(done)
        waking = sparse and any(layer.weighting == "dense" for layer in self.layers.values())
        due = sparse and (waking or self.schedule.due(done))
        # Of the step just done, the last before a dense tail too; and before the refresh, since
        # what an optimizer did to weights that stay zero is no score.
        finishing = self.sparse and not waking and self.recipe.changes_weight
        weights = [local(layer.weight) for layer in self.layers.values()] if finishing else []
        before = [weight.clone() for weight in weights] if due else []
        if finishing:
            self._after_step()
        record = None
        if due:
            try:
                record = self._refresh(done)
            except BaseException:
                for weight, saved in zip(weights, before, strict=True):
                    weight.copy_(saved)
                raise
        self._step = done
        self._set_weighting(sparse)
        if record is not None:
            self._after_step()
        self._terms.step_done()
        self._hook.forget()
        return record

    def refresh(self) -> Refresh:
        """Refresh the masks from the current weights now, whatever the schedule says.

        Raises:
            ScoresError: if a weight is NaN; nothing is changed then.
        """
        self._check_ready("refresh")
        record = self._refresh(self._step)
        if self.sparse:
            self._after_step()
        return record

    def before_step(self) -> None:
        """Before the step of an optimizer that is not torch's: add the recipe's gradient term.

        The gradients must be complete, unscaled and clipped. With a torch optimizer the call is
        not needed, and does no harm.
        """
        self._check_ready("before_step")
        self._terms.before_step(self.sparse)

    def close(self) -> None:
        """End the training under masks: optimizers step as if there were no controller.

        The layers stay as they are; history and state_dict stay readable.
        """
        self._hook.remove()
        for layer in self.layers.values():
            if _owner(layer) is self:
                del _OWNERS[layer]

    def state_dict(self, *, gradients: bool = True) -> dict[str, Any]:
        """What a resumed run needs besides the model's and the optimizer's state dicts.

        Args:
            gradients: include the gradients that are there, so that a run stopped in the middle
                of accumulation resumes too; after ``opt.zero_grad()`` there are none. Under FSDP
                all ranks must call it together then. Under DDP, gradients that were accumulated
                in ``no_sync`` differ by rank: let each rank save its own.

        Returns:
            Plain types and tensors only; ``torch.load(..., weights_only=True)`` reads it.

        Raises:
            ShardingError: if FSDP holds gradients that it has not reduced yet.
        """
        self._reshard()
        if gradients:
            check_all_reduced(self.model, "MaskController.state_dict")
        return {
            "version": VERSION,
            "step": self._step,
            **self._settings(),
            "patterns": self._patterns(),
            "history": history_columns(self.history),
            "gradients": pending_gradients(self.model) if gradients else None,
            "stepped": sorted(self._terms.stepped),
            "added": sorted(self._terms.added),
        }

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Continue from :meth:`state_dict`; load the model's and the optimizer's states as well.

        In whatever order. Gradients become those of the saved run, unless it saved without.

        Args:
            strict: recipe, refresh schedule and solver must be those of the saved run.

        Raises:
            CheckpointError: if the state is damaged, or of another model, pattern or recipe;
                nothing is changed then.
        """
        self._check_ready("load_state_dict")
        loaded = read_state(
            state,
            model=self.model,
            expected=self._settings() if strict else {},
            patterns=self._patterns(),
        )
        self._step = loaded.step
        self.history = loaded.history
        self._set_weighting(self.sparse)
        if loaded.gradients is not None:
            put_gradients(self.model, loaded.gradients)
        self._terms.restart(loaded.stepped, loaded.added)
        self._hook.forget()

    def _settings(self) -> dict[str, str]:
        settings = {"recipe": self.recipe, "refresh": self.schedule, "solver": self.solver}
        return {key: describe(setting) for key, setting in settings.items()}

    def _patterns(self) -> dict[str, str]:
        return {name: str(layer.pattern) for name, layer in self.layers.items()}

    def _refresh(self, step: int) -> Refresh:
        done = refresh_masks(self.layers, self.solver)
        record = Refresh(step, done.flip_rate, done.kept, done.gap, done.seconds)
        self.history.append(record)
        return record

    def _set_weighting(self, sparse: bool) -> None:
        weighting = self.recipe.weighting if sparse else "dense"
        for layer in self.layers.values():
            # Setting an attribute of a module is slow, and this runs at every step.
            if layer.weighting != weighting:
                layer.weighting = weighting

    def _after_step(self) -> None:
        if not self.recipe.changes_weight:
            return
        with torch.no_grad():
            for layer in self.layers.values():
                self.recipe.after_step(local(layer.weight), local_part(layer.mask, layer.weight))

    def _before(self, optimizer: Optimizer, parameters: set[int], again: bool) -> None:
        self._reshard()
        mine = {n: ly for n, ly in self.layers.items() if id(ly.weight) in parameters}
        # Layers that a newer controller has taken over are left to that one.
        if all(_owner(layer) is not self for layer in mine.values()):
            return
        # The others are checked by step(): a model may have an optimizer for every layer.
        self._check_layers(mine, "optimizer step")
        if _only_initialises(optimizer):
            return
        # Fused optimizers unscale inside their kernel.
        scale = getattr(optimizer, "grad_scale", None)
        self._terms.optimizer_steps(parameters, scale, again, self.sparse)

    def _check_ready(self, operation: str) -> None:
        self._reshard()
        self._check_layers(self.layers, operation)

    def _check_layers(self, layers: Mapping[str, SparseLayer], operation: str) -> None:
        """Raise unless the layers are those that the controller was made for."""
        for name, layer in layers.items():
            if not isinstance(layer, SparseLayer):
                raise ControllerError(
                    f"MaskController ({operation}): layer {name!r} is no sparse layer any more but "
                    f"a {type(layer).__name__}; call ctl.close() before densify(model)"
                )
            if _owner(layer) is not self:
                raise ControllerError(
                    f"MaskController ({operation}): layer {name!r} is in the hands of another "
                    "controller, or this one was closed; use the newest controller of a model only"
                )
            if is_sharded(layer.weight) != self._sharded[name]:
                raise ShardingError(
                    f"MaskController ({operation}): the weight of layer {name!r} was "
                    f"{'cut over ranks' if is_sharded(layer.weight) else 'gathered'} after the "
                    "controller was made; call sparsify, then fully_shard, then MaskController"
                )

    def _reshard(self) -> None:
        if self._has_shards:  # searched for once: a large model has thousands of modules
            reshard(self.model)

    def _take_over(self) -> None:
        for layer in self.layers.values():
            _OWNERS[layer] = weakref.ref(self)
        self._hook = StepHook(self._before)

    def __getstate__(self) -> dict[str, Any]:
        # A copy trains its copy of the model, and is called before optimizers' steps itself.
        return {key: value for key, value in self.__dict__.items() if key != "_hook"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take_over()


def _owner(layer: SparseLayer) -> MaskController | None:
    reference = _OWNERS.get(layer)
    return None if reference is None else reference()


def _bare(model: nn.Module) -> nn.Module:
    """The model inside DDP and torch.compile: checkpoints name its layers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner, nn.Module):
            model = inner
        else:
            return model


def _only_initialises(optimizer: Optimizer) -> bool:
    """Whether a step changes no weight: torch.distributed.checkpoint makes one with zeros.

    It makes optimizers create the state that they are about to save or to load.
    """
    if any("lr" not in group or group["lr"] != 0 for group in optimizer.param_groups):
        return False
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return not any(p.grad is not None and bool(local(p.grad).any()) for p in parameters)
