"""SparsityCallback in Lightning: counts, gradients, checkpoints, logs."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F

from resumed_runs import RECIPES, assert_resumed, same
from transposable import MaskController, find_mask, sparsify
from transposable.errors import CheckpointError, ControllerError, LayerError, RecipeError
from transposable.nn import SparseLinear, refresh_masks
from transposable.train import SRSTE, DenseTail, Recipe
from transposable.train.callbacks.lightning import SparsityCallback


class Net(pl.LightningModule):
    def __init__(self, *, pattern: str | None = "2:4T") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)
        )
        if pattern is not None:
            sparsify(self, pattern, exclude="net.4")

    @property
    def first(self) -> SparseLinear:
        return self.net[0]

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


class SGDNet(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validated(Net):
    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, index: int) -> None:
        self.log("test_loss", self.loss(batch))


class Batches:
    """Nine batches of four, resumable in the middle as Lightning asks for it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(36, 16, generator=generator)
        self.y = torch.randint(0, 3, (36,), generator=generator)
        self.done = 0
        self.start = 0

    def __len__(self) -> int:
        return 9

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        first, self.start = self.start, 0
        for index in range(first, 9):
            self.done = index + 1
            part = slice(4 * index, 4 * index + 4)
            yield self.x[part], self.y[part]

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["done"] % 9


class SaveAlways(pl.Callback):
    """A checkpoint after every batch, within accumulations too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}-{args[-1]}.ckpt", False)


def _trainer(folder: Path, callbacks: list[Any], **options: Any) -> pl.Trainer:
    # Nine batches, two a step: the last step of an epoch has one.
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "max_epochs": 2,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.5,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "logger": False,
    }
    return pl.Trainer(callbacks=callbacks, **(settings | options))


def _fit(
    folder: Path,
    callbacks: list[Any],
    module: pl.LightningModule | None = None,
    resume: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    trainer = _trainer(folder, callbacks, **options)
    trainer.fit(Net() if module is None else module, Batches(), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize(
    ("recipe", "precision"),
    [(recipe, "32-true") for recipe in RECIPES]
    + [("sr-ste", "bf16-mixed"), ("sr-ste", "bf16-true"), ("s-ste", "bf16-true")],
    ids=str,
)
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, recipe: str | Recipe, precision: str
) -> None:
    """From Lightning's own checkpoints, bit for bit, also within an accumulation."""
    straight = SparsityCallback(recipe, refresh=2)
    first = _fit(tmp_path, [straight, SaveAlways(tmp_path)], precision=precision)
    assert first.global_step == 10
    whole = (first.lightning_module, first.optimizers[0], straight.controller)
    # within an accumulation, after a step, at the end of the epoch, within one of the next
    for place in ("0-2", "0-5", "0-8", "1-4"):
        resumed = SparsityCallback(recipe, refresh=2)
        second = _fit(tmp_path, [resumed], resume=tmp_path / f"{place}.ckpt", precision=precision)
        assert second.global_step == 10
        parts = (second.lightning_module, second.optimizers[0], resumed.controller)
        assert_resumed(parts, whole, steps=10)


def test_gradients_are_saved_within_an_accumulation_only(tmp_path: Path) -> None:
    _fit(tmp_path, [SparsityCallback("ste"), SaveAlways(tmp_path)], max_epochs=1)
    for place, count in (("0-0", 6), ("0-1", 0), ("0-2", 6), ("0-8", 0)):
        checkpoint = torch.load(tmp_path / f"{place}.ckpt", weights_only=True)
        saved = checkpoint["callbacks"]["SparsityCallback"]["controller"]
        assert len(saved["gradients"] or {}) == count, place


class Watch(pl.Callback):
    """Keeps what an optimizer is handed, and the weights and masks around it."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        layer = pl_module.first
        self.gradients.append(layer.weight.grad.clone())  # before clipping
        self.weights.append(layer.weight.detach().clone())
        self.masks.append(layer.mask.clone())


def test_the_term_is_added_once_per_step_after_clipping(tmp_path: Path) -> None:
    watch, callback = Watch(), SparsityCallback(SRSTE(decay=0.5), refresh=4)
    options = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    trainer = _fit(tmp_path, [watch, callback], SGDNet(), **options)
    assert callback.controller.steps == trainer.global_step == len(watch.weights) == 10
    assert [record.step for record in callback.controller.history] == [4, 8]
    for step in range(9):
        weight, mask = watch.weights[step], watch.masks[step]
        gradient = watch.gradients[step].clamp(-0.01, 0.01)
        gradient = gradient + 0.5 * torch.where(mask, 0.0, weight)
        torch.testing.assert_close(watch.weights[step + 1], weight - 0.1 * gradient)
    for step in (4, 8):
        assert torch.equal(watch.masks[step], find_mask(watch.weights[step], "2:4T").tensor)


def test_static_zeros_stay_zero(tmp_path: Path) -> None:
    module = Net()
    _fit(tmp_path, [SparsityCallback()], module)
    assert not module.first.weight[~module.first.mask].any()
    assert module.first.weight[module.first.mask].any()


def test_a_step_that_a_gradient_scaler_skips_counts_as_for_the_trainer(tmp_path: Path) -> None:
    watch, callback, module = Watch(), SparsityCallback("sr-ste", refresh=1), Net()
    backward_passes = iter(range(99))

    def overflow_in_the_second_step(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if next(backward_passes) == 3 else gradient

    module.first.weight.register_hook(overflow_in_the_second_step)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
    trainer = _fit(tmp_path, [watch, callback], module, plugins=[plugin])
    skipped = [torch.equal(*watch.weights[step : step + 2]) for step in range(9)]
    assert skipped == [False, True] + [False] * 7
    assert callback.controller.steps == trainer.global_step == 10


@pytest.mark.parametrize("every", [1, 4])
def test_the_loggers_get_every_refresh_they_can_see(tmp_path: Path, every: int) -> None:
    callback = SparsityCallback("sr-ste", refresh=3)
    logger = CSVLogger(tmp_path)
    _fit(tmp_path, [callback], logger=logger, log_every_n_steps=every)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mask_kept"]]
    records = {record.kept: record for record in callback.controller.history}
    seen = {float(row["mask_kept"]) for row in rows}
    want = [record for record in records.values() if every == 1 or record.step < 8]
    assert len(want) == (3 if every == 1 else 2)
    for record in want:
        assert min(abs(kept - record.kept) for kept in seen) < 1e-6
    assert all(row["mask_flip_rate"] and float(row["mask_gap"]) == 0 for row in rows)


def test_the_best_checkpoint_tests_and_loads(tmp_path: Path) -> None:
    """ModelCheckpoint keeps the masks; testing a checkpoint leaves the controller where it is."""
    module, callback = Validated(), SparsityCallback(DenseTail(SRSTE(), at=6), refresh=1)
    keep = ModelCheckpoint(tmp_path, "best", monitor="val_loss", save_weights_only=False)
    trainer = _trainer(tmp_path, [callback, keep])
    trainer.fit(module, Batches(), Batches())
    assert module.first.weighting == "dense"
    trainer.test(module, Batches(), ckpt_path=keep.best_model_path, verbose=False)
    assert callback.controller.steps == 10
    saved = torch.load(keep.best_model_path, weights_only=True)
    assert same(dict(module.state_dict()), dict(saved["state_dict"]))
    fresh = Net.load_from_checkpoint(keep.best_model_path)
    assert same(dict(fresh.state_dict()), dict(saved["state_dict"]))
    with pytest.raises(CheckpointError, match="pattern 4:8T, and the checkpoint holds 2:4T"):
        Net(pattern="4:8T").load_state_dict(saved["state_dict"])


def test_fitting_once_more_goes_on(tmp_path: Path) -> None:
    """As Lightning's own counters do: two fits of one epoch are one of two."""
    whole, parts = SparsityCallback("sr-ste", refresh=2), SparsityCallback("sr-ste", refresh=2)
    _fit(tmp_path, [whole])
    module = Net()
    trainer = _trainer(tmp_path, [parts], max_epochs=1)
    trainer.fit(module, Batches())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, Batches())
    assert parts.controller.steps == trainer.global_step == 10
    assert [r.step for r in parts.controller.history] == [2, 4, 6, 8, 10]


def test_another_module_starts_from_the_beginning(tmp_path: Path) -> None:
    callback = SparsityCallback("sr-ste", refresh=2)
    trainer = _trainer(tmp_path, [callback], max_epochs=1)
    trainer.fit(Net(), Batches())
    trainer.fit_loop.max_epochs = 2
    other = Net()
    trainer.fit(other, Batches())
    assert callback.controller.model is other
    assert callback.controller.steps == 5


class Manual(SGDNet):
    """Two optimizers, one of them stepping every other batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[0].parameters(), lr=0.1),
            torch.optim.SGD(self.net[2].parameters(), lr=0.1),
        ]

    def training_step(self, batch: Any, index: int) -> None:
        self.manual_backward(self.loss(batch))
        for number, optimizer in enumerate(self.optimizers()):
            if number == 0 or index % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()


class ManyAtOnce(Manual):
    """One optimizer that steps three times a batch."""

    callback: SparsityCallback | None = None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Any, index: int) -> None:
        for _ in range(3):
            self.manual_backward(self.loss(batch))
            self.optimizers().step()
            if self.callback is not None:
                self.callback.controller.step()
            self.optimizers().zero_grad()


MANUAL = {"accumulate_grad_batches": 1, "gradient_clip_val": None, "max_epochs": 1}


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    callback = SparsityCallback(SRSTE(decay=0.1), refresh=1)
    trainer = _fit(tmp_path, [callback], Manual(), **MANUAL)
    assert trainer.global_step == 13
    assert callback.controller.steps == 9


def test_manual_optimization_with_many_steps_a_batch(tmp_path: Path) -> None:
    with pytest.raises(ControllerError, match=r"a second optimizer step for layer"):
        _fit(tmp_path, [SparsityCallback()], ManyAtOnce(), **MANUAL)
    module, callback = ManyAtOnce(), SparsityCallback("sr-ste")
    module.callback = callback
    trainer = _fit(tmp_path, [callback], module, **MANUAL)
    assert callback.controller.steps == trainer.global_step == 27


def test_the_term_ends_with_the_fit_and_with_an_interruption(tmp_path: Path) -> None:
    class Interrupt(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("stop")

    for extra in ([], [Interrupt()]):
        module, callback = Net(), SparsityCallback(SRSTE(decay=0.1))
        if extra:
            with pytest.raises(RuntimeError, match="stop"):
                _fit(tmp_path, [callback, *extra], module)
        else:
            _fit(tmp_path, [callback], module)
        weight = module.first.weight
        weight.grad = torch.zeros_like(weight)
        torch.optim.SGD([weight], lr=0.1).step()
        assert not weight.grad.any()


def test_a_ready_controller(tmp_path: Path) -> None:
    module = Net()
    controller = MaskController(module, SRSTE(decay=0.1), refresh=2)
    callback = SparsityCallback(controller=controller)
    _fit(tmp_path, [callback, SaveAlways(tmp_path)], module)
    assert callback.controller is controller
    assert controller.steps == 10
    again = MaskController(Net(), SRSTE(decay=0.1), refresh=2)
    _fit(
        tmp_path,
        [SparsityCallback(controller=again)],
        again.model,
        resume=tmp_path / "0-5.ckpt",
    )
    assert same(module.state_dict(), again.model.state_dict())
    with pytest.raises(ControllerError, match=r"'net\.0' of the controller is not in the Net"):
        _fit(tmp_path, [SparsityCallback(controller=controller)])


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    _fit(tmp_path, [SaveAlways(tmp_path)], max_epochs=1)
    with pytest.raises(CheckpointError, match="at step 3 from a checkpoint of a run without"):
        _fit(tmp_path, [SparsityCallback()], resume=tmp_path / "0-5.ckpt")
    _fit(tmp_path, [SparsityCallback("ste"), SaveAlways(tmp_path)], max_epochs=1)
    with pytest.raises(CheckpointError, match="the recipe is Static"):
        _fit(tmp_path, [SparsityCallback()], resume=tmp_path / "0-5.ckpt")
    with pytest.raises(CheckpointError, match="pattern 4:8T, and the checkpoint holds 2:4T"):
        _fit(
            tmp_path,
            [SparsityCallback("ste")],
            Net(pattern="4:8T"),
            resume=tmp_path / "0-5.ckpt",
        )


def test_averaged_weights(tmp_path: Path) -> None:
    """A moving average of masks would be no mask; averaged weights can get their own."""
    callback = SparsityCallback("sr-ste", refresh=1)
    with pytest.raises(ControllerError, match="EMAWeightAveraging averages buffers too"):
        _fit(tmp_path, [callback, EMAWeightAveraging()])
    module = Net()
    _fit(tmp_path, [callback, EMAWeightAveraging(use_buffers=False)], module)
    assert module.first.as_mask().violations() == 0
    refresh_masks(module)
    assert torch.equal(module.first.mask, find_mask(module.first.weight, "2:4T").tensor)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="Net has no sparse layer"):
        _fit(tmp_path, [SparsityCallback()], Net(pattern=None))
    with pytest.raises(RecipeError, match="'nosuch'"):
        SparsityCallback("nosuch")
    with pytest.raises(ControllerError, match="give one or the other"):
        SparsityCallback(refresh=3, controller=MaskController(Net()))
    with pytest.raises(ControllerError, match="none before training starts"):
        SparsityCallback().controller  # noqa: B018


def test_the_other_package_of_lightning(tmp_path: Path) -> None:
    """pytorch_lightning has its own classes; the callback serves its Trainer too."""
    other = pytest.importorskip("pytorch_lightning")

    class Module(other.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net().net

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = SparsityCallback("sr-ste", refresh=1)
    trainer = other.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), Batches())
    assert callback.controller.steps == trainer.global_step == 9


def test_the_scale_of_s_ste_keeps_its_precision() -> None:
    """A module turned to bfloat16 keeps the factor that the run started with."""
    module = Net()
    MaskController(module, "s-ste")
    scale = module.first.scale
    assert scale is not None
    module.to(torch.bfloat16)
    assert module.first.weight.dtype == torch.bfloat16
    assert torch.equal(module.first.scale, scale)
    assert module.first.scale.dtype == torch.float32
