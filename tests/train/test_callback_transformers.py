"""SparsityCallback in transformers.Trainer: counts, gradients, checkpoints, logs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from resumed_runs import RECIPES, assert_resumed, same
from transposable import MaskController, find_mask, sparsify
from transposable.errors import CheckpointError, ControllerError, LayerError, RecipeError
from transposable.nn import sparse_layers
from transposable.train import SRSTE, DenseTail, Recipe
from transposable.train.callbacks.transformers import SparsityCallback


def _model(*, dropout: float = 0.1, pattern: str | None = "2:4T") -> BertForSequenceClassification:
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )
    if pattern is not None:
        sparsify(model, pattern, exclude="classifier")
    return model


def _data(count: int = 44) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(0, 64, (12,), generator=generator), "labels": i % 2}
        for i in range(count)
    ]


def _trainer(
    folder: Path,
    callbacks: list[Any],
    model: torch.nn.Module | None = None,
    **options: Any,
) -> Trainer:
    # 11 batches an epoch, 2 a step: the last step of an epoch has one.
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 8,
        "save_steps": 4,
        "logging_steps": 2,
        "max_grad_norm": 0.5,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return Trainer(
        _model() if model is None else model,
        TrainingArguments(**(settings | options)),
        train_dataset=_data(),
        eval_dataset=_data(8),
        callbacks=callbacks,
    )


def _logged(trainer: Trainer, key: str) -> dict[int, float]:
    """A figure of the Trainer's log by step."""
    return {log["step"]: log[key] for log in trainer.state.log_history if key in log}


@pytest.mark.parametrize(
    ("recipe", "bf16"), [(recipe, False) for recipe in RECIPES] + [("sr-ste", True)], ids=str
)
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, recipe: str | Recipe, bf16: bool
) -> None:
    """From the Trainer's own checkpoint, with dropout and shuffling, bit for bit."""
    straight, resumed = SparsityCallback(recipe, refresh=2), SparsityCallback(recipe, refresh=2)
    first = _trainer(tmp_path, [straight], bf16=bf16)
    first.train()
    second = _trainer(tmp_path, [resumed], bf16=bf16)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    runs = [
        (trainer.model, trainer.optimizer, callback.controller)
        for trainer, callback in ((first, straight), (second, resumed))
    ]
    assert_resumed(*runs, steps=8)
    losses = [
        [log["loss"] for log in t.state.log_history if "loss" in log] for t in (first, second)
    ]
    assert losses[0] == losses[1]


class _Watch(TrainerCallback):
    """Keeps what the Trainer hands to the optimizer, and how often."""

    def __init__(self) -> None:
        self.clipped: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.masks: list[dict[str, torch.Tensor]] = []
        self.substeps = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.substeps += 1

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        layers = sparse_layers(kwargs["model"])
        self.clipped.append({n: layer.weight.grad.clone() for n, layer in layers.items()})
        self.weights.append({n: layer.weight.detach().clone() for n, layer in layers.items()})
        self.masks.append({n: layer.mask.clone() for n, layer in layers.items()})


def test_the_term_is_added_once_per_step_after_clipping(tmp_path: Path) -> None:
    watch, callback = _Watch(), SparsityCallback(SRSTE(decay=0.5), refresh=3)
    options = {"optim": "sgd", "lr_scheduler_type": "constant", "weight_decay": 0.0}
    trainer = _trainer(tmp_path, [watch, callback], save_strategy="no", **options)
    trainer.train()
    assert watch.substeps > 0  # there was accumulation
    assert callback.controller.steps == trainer.state.global_step == len(watch.clipped) == 8
    assert [record.step for record in callback.controller.history] == [3, 6]
    for step in range(7):
        for name, weight in watch.weights[step].items():
            gradient, mask = watch.clipped[step][name], watch.masks[step][name]
            gradient = gradient + 0.5 * torch.where(mask, 0.0, weight)
            torch.testing.assert_close(watch.weights[step + 1][name], weight - 1e-2 * gradient)
    # The masks are those of the weights after the step that the schedule names.
    for step, weights in ((3, watch.weights[3]), (6, watch.weights[6])):
        for name, weight in weights.items():
            assert torch.equal(watch.masks[step][name], find_mask(weight, "2:4T").tensor)


def test_static_zeros_stay_zero(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, [SparsityCallback()], save_strategy="no")
    trainer.train()
    for layer in sparse_layers(trainer.model).values():
        assert not layer.weight[~layer.mask].any()
        assert layer.weight[layer.mask].any()


def test_a_step_that_a_gradient_scaler_skips_counts_as_for_the_trainer(tmp_path: Path) -> None:
    watch, callback = _Watch(), SparsityCallback("sr-ste", refresh=1)
    trainer = _trainer(tmp_path, [watch, callback], save_strategy="no")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    backward_passes = iter(range(99))

    def overflow_in_the_second_step(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if next(backward_passes) == 3 else gradient

    trainer.model.bert.pooler.dense.weight.register_hook(overflow_in_the_second_step)
    trainer.train()
    skipped = [same(watch.weights[step], watch.weights[step + 1]) for step in range(7)]
    assert skipped == [False, True, False, False, False, False, False]
    assert callback.controller.steps == trainer.state.global_step == 8


def test_the_log_has_the_newest_refresh(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Logger(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(dict(kwargs["logs"]))

    callback = SparsityCallback("sr-ste", refresh=3)
    trainer = _trainer(tmp_path, [callback, Logger()])
    trainer.train()
    logged = {
        log["step"]: log["mask_flip_rate"]
        for log in trainer.state.log_history
        if "mask_flip_rate" in log
    }
    third, sixth = callback.controller.history
    assert logged == {4: third.flip_rate, 6: sixth.flip_rate}  # none since the log of step 6
    assert _logged(trainer, "mask_kept") == {4: third.kept, 6: sixth.kept}
    assert _logged(trainer, "mask_gap") == {4: third.gap, 6: sixth.gap}
    assert [log["mask_kept"] for log in seen if "mask_kept" in log] == [third.kept, sixth.kept]
    file = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert [log for log in file["log_history"] if "mask_gap" in log]


def test_loggers_of_the_trainer_see_it_when_it_comes_first(tmp_path: Path) -> None:
    seen: list[str] = []

    class Reporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.extend(kwargs["logs"])

    trainer = _trainer(tmp_path, [Reporter()], save_strategy="no")
    trainer.callback_handler.callbacks.insert(0, SparsityCallback("ste", refresh=2))
    trainer.train()
    assert "mask_kept" in seen


def test_a_run_without_refresh_logs_nothing(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, [SparsityCallback()], save_strategy="no")
    trainer.train()
    assert not [key for log in trainer.state.log_history for key in log if key.startswith("mask")]


def test_the_best_model_comes_back_with_its_masks(tmp_path: Path) -> None:
    """The best checkpoint is of the sparse steps, and training ended in the dense tail."""
    callback = SparsityCallback(DenseTail(SRSTE(), at=5), refresh=1)
    losses = iter([3.0, 1.0, 2.0, 4.0])
    trainer = _trainer(
        tmp_path,
        [callback],
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="chosen",
        greater_is_better=False,
    )
    trainer.compute_metrics = lambda prediction: {"chosen": next(losses)}
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    best = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert same(dict(trainer.model.state_dict()), best)
    assert {layer.weighting for layer in sparse_layers(trainer.model).values()} == {"masked"}


def test_a_saved_model_loads_into_a_sparse_one(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, [SparsityCallback("sr-ste", refresh=2)], save_strategy="no")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    state = load_file(tmp_path / "final" / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query"
    assert state[f"{name}.mask"].dtype == torch.bool
    assert state[f"{name}.sparsity"].tolist() == [2, 4, 1, 0]
    fresh = _model(pattern=None)
    sparsify(fresh, "2:4T", exclude="classifier")
    fresh.load_state_dict(state)
    ids = _data(3)
    batch = torch.stack([row["input_ids"] for row in ids])
    with torch.inference_mode():
        assert torch.equal(
            fresh.eval()(input_ids=batch).logits, trainer.model.eval()(input_ids=batch).logits
        )
    other = _model(pattern="4:8T")
    with pytest.raises(CheckpointError, match="pattern 4:8T, and the checkpoint holds 2:4T"):
        other.load_state_dict(state)


def test_a_static_model_is_itself_without_its_masks(tmp_path: Path) -> None:
    """from_pretrained builds the dense model; the zeros are in the weights."""
    trainer = _trainer(tmp_path, [SparsityCallback()], save_strategy="no")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    dense = BertForSequenceClassification.from_pretrained(tmp_path / "final")
    assert not sparse_layers(dense)
    batch = torch.stack([row["input_ids"] for row in _data(3)])
    with torch.inference_mode():
        want = trainer.model.eval()(input_ids=batch).logits
        assert torch.equal(dense.eval()(input_ids=batch).logits, want)


def test_an_earlier_checkpoint_of_another_pattern_or_recipe(tmp_path: Path) -> None:
    _trainer(tmp_path, [SparsityCallback("sr-ste", refresh=2)]).train()
    checkpoint = str(tmp_path / "checkpoint-4")
    with pytest.raises(CheckpointError, match="pattern 4:8T, and the checkpoint holds 2:4T"):
        _trainer(tmp_path, [SparsityCallback("sr-ste")], _model(pattern="4:8T")).train(checkpoint)
    with pytest.raises(CheckpointError, match="the recipe is Static"):
        _trainer(tmp_path, [SparsityCallback("static")]).train(checkpoint)


def test_a_ready_controller(tmp_path: Path) -> None:
    """Its steps go on from where they are, also in a checkpoint, and it stays open at the end."""
    model = _model()
    controller = MaskController(model, SRSTE(decay=0.1), refresh=2)
    loose = torch.optim.SGD(model.parameters(), lr=0.1)
    loose.step()
    controller.step()
    callback = SparsityCallback(controller=controller)
    trainer = _trainer(tmp_path, [callback], model)
    trainer.train()
    assert callback.controller is controller
    assert controller.steps == 9
    model.zero_grad()
    weight = sparse_layers(model)["bert.encoder.layer.0.output.dense"].weight
    weight.grad = torch.zeros_like(weight)
    loose.step()
    assert weight.grad.any()
    again = MaskController(_model(), SRSTE(decay=0.1), refresh=2)
    second = _trainer(tmp_path, [SparsityCallback(controller=again)], again.model)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.steps == 9


def test_training_twice_starts_the_recipe_again(tmp_path: Path) -> None:
    callback = SparsityCallback(DenseTail(SRSTE(), at=5), refresh=1)
    trainer = _trainer(tmp_path, [callback], save_strategy="no")
    trainer.train()
    first = callback.controller
    trainer.train()
    assert callback.controller is not first
    assert callback.controller.steps == trainer.state.global_step == 8
    assert [record.step for record in callback.controller.history] == [1, 2, 3, 4]


def test_the_term_ends_with_the_run(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, [SparsityCallback(SRSTE(decay=0.1))], save_strategy="no")
    trainer.train()
    weight = sparse_layers(trainer.model)["bert.encoder.layer.0.output.dense"].weight
    weight.grad = torch.zeros_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()
    assert not weight.grad.any()


class _Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_after_an_interrupted_run_the_term_is_added_once(tmp_path: Path) -> None:
    model = _model(dropout=0.0)
    interrupted = _trainer(tmp_path, [SparsityCallback(SRSTE(0.5)), _Interrupt()], model)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    twin = copy.deepcopy(model)
    finals = []
    for net in (model, twin):  # the copy's layers have no earlier controller
        trainer = _trainer(tmp_path, [SparsityCallback(SRSTE(0.5))], net, save_strategy="no")
        trainer.train()
        finals.append(dict(net.state_dict()))
    assert same(*finals)


def test_a_controller_of_another_model(tmp_path: Path) -> None:
    callback = SparsityCallback(controller=MaskController(_model(), "ste"))
    with pytest.raises(ControllerError, match="is not in the BertForSequenceClassification"):
        _trainer(tmp_path, [callback]).train()


def test_a_dense_model(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="BertForSequenceClassification has no sparse layer"):
        _trainer(tmp_path, [SparsityCallback()], _model(pattern=None)).train()


def test_a_checkpoint_of_a_run_without_the_callback(tmp_path: Path) -> None:
    _trainer(tmp_path, []).train()
    with pytest.raises(CheckpointError, match="at step 4 from a checkpoint of a run without"):
        _trainer(tmp_path, [SparsityCallback()]).train(str(tmp_path / "checkpoint-4"))


def test_two_of_them(tmp_path: Path) -> None:
    with pytest.raises(ControllerError, match="one SparsityCallback"):
        _trainer(tmp_path, [SparsityCallback(), SparsityCallback("ste")]).train()


def test_callbacks_that_the_trainer_rebuilds(tmp_path: Path) -> None:
    _trainer(tmp_path, [SparsityCallback("ste")]).train()
    trainer = _trainer(
        tmp_path, [SparsityCallback("ste")], restore_callback_states_from_checkpoint=True
    )
    with pytest.raises(ControllerError, match="restore_callback_states_from_checkpoint=True"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_bad_arguments() -> None:
    with pytest.raises(RecipeError, match="'nosuch'"):
        SparsityCallback("nosuch")
    with pytest.raises(RecipeError, match="refresh"):
        SparsityCallback("ste", refresh=0)
    with pytest.raises(ControllerError, match="give one or the other"):
        SparsityCallback("ste", controller=MaskController(_model()))
    with pytest.raises(ControllerError, match="none before training starts"):
        SparsityCallback().controller  # noqa: B018


def test_a_real_encoder(tmp_path: Path) -> None:
    """Two layers of all-MiniLM-L6-v2 with a loss of our own: stop, resume, the same bits."""
    from transposable.demo.encoder import load_encoder, model_directory

    assert model_directory().is_dir()
    encoder = load_encoder()
    rows = [
        dict(encoder.tokenizer(f"a sentence about {word}", padding="max_length", max_length=12))
        for word in ["cats", "dogs", "trains", "planes", "rain", "snow", "cheese", "bread"]
    ]

    class Pairs(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
            mean = F.normalize(self.inner(**batch).last_hidden_state.mean(1), dim=1)
            return {"loss": (mean @ mean.T).square().mean()}

    def net() -> torch.nn.Module:
        inner = copy.deepcopy(encoder.net)
        inner.encoder.layer = inner.encoder.layer[:2]
        sparsify(inner, "4:8T", include="encoder.*")
        return Pairs(inner)

    runs = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        trainer = Trainer(
            net(),
            TrainingArguments(
                output_dir=str(tmp_path),
                per_device_train_batch_size=4,
                max_steps=3,
                save_steps=2,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=rows,
            callbacks=[SparsityCallback("sr-ste", refresh=1)],
        )
        trainer.train(resume_from_checkpoint=resume)
        runs.append(dict(trainer.model.state_dict()))
    assert same(*runs)
