"""SparsityCallback for transformers.Trainer."""

from __future__ import annotations

import json
from typing import Any

from transposable.errors import CheckpointError, ControllerError, DependencyError
from transposable.train.callbacks.binding import ControlledCallback, figures

try:
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise DependencyError(
        f"transposable.train.callbacks.transformers: {error}; the callback needs transformers with "
        "what its Trainer needs; run: pip install 'transposable[hf]'"
    ) from error


class SparsityCallback(ControlledCallback, TrainerCallback, ExportableState):
    """Trains the sparse layers of a ``transformers.Trainer``'s model by a recipe.

        sparsify(model, "2:4T", exclude="classifier")
        trainer = Trainer(model, args, callbacks=[SparsityCallback("sr-ste", refresh=40)], ...)
        trainer.train()

    Args:
        recipe, refresh, solver: as for :class:`~transposable.MaskController`, which is made when
            training starts, after the Trainer has placed, wrapped and loaded the model.
        controller: a ready controller instead; it is not closed when training ends.

    Raises:
        RecipeError: if recipe or refresh is unknown.
        ControllerError: if a ready controller comes with a recipe, refresh or solver.

    One ``controller.step()`` follows each optimizer step, before the Trainer logs, evaluates or
    saves: not each batch of an accumulation. A step that a gradient scaler skips counts as it does
    for the Trainer, so that ``controller.steps`` is ``state.global_step`` of the run.

    A checkpoint of the Trainer holds the masks with the weights and the controller's state in
    trainer_state.json; ``trainer.train(resume_from_checkpoint=...)`` goes on with both. Sparsify
    the model before. With a training loss the Trainer logs ``mask_flip_rate``, ``mask_kept`` and
    ``mask_gap`` of the newest refresh since the last one.

    Example:
        >>> callback = SparsityCallback("sr-ste", refresh=40)
        >>> callback.controller
        Traceback (most recent call last):
        ...
        transposable.errors.ControllerError: SparsityCallback.controller: there is none before ...
    """

    _logged = 0  # refreshes that the log has, or need not have

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the controller, or give it the state that the Trainer has read."""
        entry = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(entry, list):
            raise ControllerError(
                f"SparsityCallback: the Trainer has {len(entry)} of them; a model has one "
                "controller, so give one SparsityCallback (patterns may differ by layer, see "
                "sparsify)"
            )
        saved = None
        if state.global_step > 0:  # resumed: a run that starts is at step 0
            saved = self._saved(entry, state.global_step)
        controller = self._binding.start(kwargs["model"], saved)
        self._logged = len(controller.history)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step; refresh the masks when due."""
        self.controller.step()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the newest refresh to the training log."""
        logs = kwargs.get("logs")
        held = self._binding.held
        if held is None or logs is None or "loss" not in logs or len(held.history) <= self._logged:
            return
        self._logged = len(held.history)
        # The Trainer has copied the logs into its history already; callbacks after this one see
        # what is added to the logs themselves.
        if state.log_history and state.log_history[-1].get("loss") == logs["loss"]:
            state.log_history[-1].update(figures(held.history[-1]))
        logs.update(figures(held.history[-1]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The recipe's gradient term ends with the run."""
        self._binding.end()

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into trainer_state.json."""
        held = self._binding.held
        # Gradients are no JSON, and when the Trainer saves there are none. As one string, a history
        # of many refreshes does not take a line of that file for each figure.
        saved = None if held is None else json.dumps(held.state_dict(gradients=False))
        return {"args": {}, "attributes": {"saved_controller": saved}}

    @property
    def saved_controller(self) -> None:
        """The entry of :meth:`state` that holds the controller's state; it cannot be set."""

    @saved_controller.setter
    def saved_controller(self, saved: str | None) -> None:
        raise ControllerError(
            "SparsityCallback: restore_callback_states_from_checkpoint=True makes the Trainer "
            "replace callbacks by new ones without their recipe; leave that argument out, "
            "SparsityCallback resumes without it"
        )

    def _saved(self, entry: dict[str, Any] | None, step: int) -> dict[str, Any]:
        saved = (entry or {}).get("attributes", {}).get("saved_controller")
        if saved is None:
            raise CheckpointError(
                f"SparsityCallback: the Trainer resumes at step {step} from a checkpoint of a run "
                "without this callback; to go on sparse from its weights, load them into the dense "
                "model, sparsify it, and train without resume_from_checkpoint"
            )
        state: dict[str, Any] = json.loads(saved)
        return state
