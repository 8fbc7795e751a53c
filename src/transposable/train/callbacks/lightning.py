"""SparsityCallback for Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from transposable.errors import CheckpointError, ControllerError, DependencyError
from transposable.train.callbacks.binding import ControlledCallback, figures


def _callback_class() -> Any:
    """Lightning's base class, of whichever of its two packages there is."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return import_module(package).Callback
        except ModuleNotFoundError as error:
            missing = error
    raise DependencyError(
        f"transposable.train.callbacks.lightning: {missing}; the callback needs Lightning; run: "
        "pip install 'transposable[lightning]'"
    ) from missing


class SparsityCallback(ControlledCallback, _callback_class()):  # type: ignore[misc]
    """Trains the sparse layers of a LightningModule by a recipe.

        sparsify(module, "2:4T", exclude="head")
        trainer = Trainer(callbacks=[SparsityCallback("sr-ste", refresh=40)], ...)
        trainer.fit(module, data)

    Args:
        recipe, refresh, solver: as for :class:`~transposable.MaskController`, which is made when
            fitting starts, after the strategy has wrapped or sharded the module.
        controller: a ready controller instead; it is not closed when fitting ends.

    Raises:
        RecipeError: if recipe or refresh is unknown.
        ControllerError: if a ready controller comes with a recipe, refresh or solver.

    One ``controller.step()`` follows each batch in which optimizers stepped: not each batch of an
    accumulation, and once if several optimizers share the layers. With manual optimization that
    steps an optimizer more than once in a batch, call ``controller.step()`` after each in
    ``training_step``; the callback then leaves it to you.

    Checkpoints hold the masks with the weights and the controller's state with the callbacks', in
    the middle of an accumulation also its gradients; ``trainer.fit(ckpt_path=...)`` goes on with
    all of them. Sparsify the module before, or in ``configure_model``. ``mask_flip_rate``,
    ``mask_kept`` and ``mask_gap`` of the newest refresh are logged with ``pl_module.log``, once or
    more at the trainer's ``log_every_n_steps``.

    Example:
        >>> SparsityCallback("sr-ste", refresh=40).state_dict()
        {}
    """

    _loaded: dict[str, Any] | None = None
    _fresh = True
    _fitting = False
    _accumulating = False
    _optimizer_steps = 0
    _controller_steps = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """A checkpoint that Lightning reads after this is for this run."""
        self._loaded = None
        self._accumulating = False
        self._fitting = stage == "fit"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the controller; which of the two is there first, strategies decide."""
        if not self._fitting:
            return  # testing reads the checkpoint for its weights
        self._loaded = state_dict["controller"]
        self._accumulating = state_dict["accumulating"]

    def state_dict(self) -> dict[str, Any]:
        """What Lightning writes into its checkpoints."""
        held = self._binding.held
        if held is None:
            return {}
        # Lightning keeps the gradients of the last step until the next backward pass.
        saved = held.state_dict(gradients=self._accumulating)
        return {"controller": saved, "accumulating": self._accumulating}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the controller before anything is evaluated."""
        _check_averaging(trainer.callbacks)
        held = self._binding.held
        state = self._loaded
        if state is None and held is not None and held.model is pl_module and trainer.global_step:
            state = held.state_dict(gradients=False)  # fit once more, as Lightning counts on
        self._binding.start(pl_module, state)
        self._fresh = state is None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Everything is restored now."""
        if self._loaded is not None:
            # Some strategies load after wrapping, and Lightning has cleared the gradients by now.
            self.controller.load_state_dict(self._loaded)
        elif self._fresh and trainer.ckpt_path is not None and trainer.global_step > 0:
            raise CheckpointError(
                f"SparsityCallback: the Trainer resumes at step {trainer.global_step} from a "
                "checkpoint of a run without this callback; to go on sparse from its weights, load "
                "them into the dense module, sparsify it, and fit without ckpt_path"
            )
        self._loaded = None
        self._optimizer_steps = trainer.global_step
        self._controller_steps = self.controller.steps

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """There are gradients that no optimizer has used."""
        self._accumulating = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Count the step if there was one; refresh the masks when due; log."""
        done = trainer.global_step - self._optimizer_steps
        if done == 0:
            return
        self._accumulating = False
        controller = self.controller
        if controller.steps == self._controller_steps:
            controller.step()
        self._optimizer_steps = trainer.global_step
        self._controller_steps = controller.steps
        record = controller.history[-1] if controller.history else None
        # Long enough to meet a step at which the loggers write.
        if record is not None and controller.steps - record.step < trainer.log_every_n_steps:
            pl_module.log_dict(figures(record), on_step=True, on_epoch=False, batch_size=1)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The recipe's gradient term ends with the fit."""
        if stage == "fit":
            self._binding.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """As at the end: no teardown follows."""
        self._binding.end()


def _check_averaging(callbacks: list[Any]) -> None:
    for callback in callbacks:
        names = {kind.__name__ for kind in type(callback).__mro__}
        if "WeightAveraging" in names and getattr(callback, "_use_buffers", False):
            raise ControllerError(
                f"SparsityCallback: {type(callback).__name__} averages buffers too, and the "
                "average of masks is no mask of the pattern; give it use_buffers=False, and after "
                "training call transposable.nn.refresh_masks(module) for masks of the averaged "
                "weights"
            )
