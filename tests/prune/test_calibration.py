"""Calibration data in every form, and what is said about data that will not do."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from transposable import CalibrationError
from transposable.prune.calibration import Call, record


class Two(nn.Module):
    """Takes two inputs, one of them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return self.layer(x) if scale is None else self.layer(x) * scale


X = torch.arange(40.0).reshape(10, 4)


def _inputs(calls: list[Call]) -> torch.Tensor:
    return torch.cat([call.args[0] if call.args else call.kwargs["x"] for call in calls])


@pytest.mark.parametrize(
    "calibration",
    [
        DataLoader(TensorDataset(X, torch.zeros(10)), batch_size=4),
        DataLoader(TensorDataset(X), batch_size=3),
        [X[:4], X[4:]],
        [(X, "label")],
        [[X[:5], 1], [X[5:], 2]],
        [{"x": X[:3]}, {"x": X[3:]}],
        [({"x": X},)],
        [UserDict(x=X)],
        (X[i : i + 2] for i in range(0, 10, 2)),
        X,
        {"x": X},
        lambda model: [model(part) for part in X.split(4)],
        lambda model: [model(x=part) for part in X.split(4)],
    ],
)
def test_every_form_gives_the_same_inputs(calibration: Any) -> None:
    calls = record(Two(), calibration, None, None)
    assert torch.equal(_inputs(calls), X)
    assert sum(call.samples for call in calls) == 10


@pytest.mark.parametrize("form", [list, iter])
def test_as_many_samples_as_asked_for(form: Any) -> None:
    calls = record(Two(), form([X[:4], X[4:8], X[8:]]), 6, None)
    assert torch.equal(_inputs(calls), X[:6])
    assert [call.samples for call in calls] == [4, 2]


def test_512_samples_by_default() -> None:
    calls = record(Two(), [torch.zeros(100, 4)] * 9, None, None)
    assert sum(call.samples for call in calls) == 512


def test_all_tensors_of_a_cut_batch_are_cut() -> None:
    batch = {"x": X, "scale": torch.ones(10, 1)}
    (call,) = record(Two(), [batch], 3, None)
    assert call.kwargs["x"].shape == (3, 4)
    assert call.kwargs["scale"].shape == (3, 1)
    assert call.run(Two()).shape == (3, 4)


@pytest.mark.parametrize(
    "turn",
    [
        lambda batch: (batch["a"], batch["b"]),
        lambda batch: {"x": batch["a"], "scale": batch["b"]},
    ],
)
def test_batch_to_args(turn: Any) -> None:
    batch = {"a": X, "b": torch.full((10, 1), 2.0)}
    model = Two()
    (call,) = record(model, [batch], None, turn)
    assert torch.equal(call.run(model), model(X) * 2)


def test_batch_to_args_with_one_argument() -> None:
    (call,) = record(Two(), [{"a": X}], None, lambda batch: batch["a"])
    assert torch.equal(call.args[0], X)


def test_a_function_may_change_its_inputs_afterwards() -> None:
    def loop(model: nn.Module) -> None:
        x = X.clone()
        for _ in range(2):
            model(x)
            x += 100

    calls = record(Two(), loop, None, None)
    assert torch.equal(_inputs(calls), torch.cat([X, X + 100]))


class Counting:
    """Something that a model changes when it is called, like a cache."""

    def __init__(self) -> None:
        self.calls = 0


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, cache: Counting) -> torch.Tensor:
        cache.calls += 1
        return self.layer(x) * cache.calls


def test_what_a_model_does_to_its_arguments_is_lost() -> None:
    cache = Counting()
    model = Stateful()
    (call,) = record(model, [X], None, lambda batch: (batch, cache))
    assert torch.equal(call.run(model), call.run(model))
    assert cache.calls == 0
    (call,) = record(model, lambda m: m(X, cache), None, None)
    assert torch.equal(call.run(model), call.run(model))
    assert cache.calls == 1  # by the function itself


def test_hooks_of_a_recorded_loop_are_gone() -> None:
    model = Two()
    record(model, lambda m: m(X), None, None)
    assert not model._forward_pre_hooks

    def fail(m: nn.Module) -> None:
        m(X)
        raise ValueError("no more")

    with pytest.raises(CalibrationError, match=r"call 1 of the model: ValueError: no more"):
        record(model, fail, None, None)
    assert not model._forward_pre_hooks


used_up = iter([X])
list(used_up)


@pytest.mark.parametrize("empty", [[], used_up, DataLoader(TensorDataset(X[:0])), lambda model: 1])
def test_no_batch(empty: Any) -> None:
    with pytest.raises(CalibrationError, match=r"there was no batch.*used up"):
        record(Two(), empty, None, None)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (3, "received a int; give a DataLoader"),
        (["some text"], "batch 0 is a str; a batch is a tensor"),
        ([X, ()], "batch 1 is a tuple"),
        ([X, None], "batch 1 is a NoneType"),
        ([X[:0]], r"batch 0 \(float32 \(0, 4\)\) holds no sample"),
        ([X.to("meta")], "cannot be moved to the model's device cpu"),
    ],
)
def test_what_cannot_be_a_batch(calibration: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        record(Two(), calibration, None, None)


@pytest.mark.parametrize("samples", [0, -1, True])
def test_a_number_of_samples_that_is_none(samples: Any) -> None:
    with pytest.raises(CalibrationError, match="at least 1"):
        record(Two(), [X], samples, None)
