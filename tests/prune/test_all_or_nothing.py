"""Whatever fails, and wherever: the model is as it was, without hooks; who failed is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prune import killed
from transposable.errors import CalibrationError
from transposable.prune import AdaPrune, prune_model
from transposable.prune.replay import run
from transposable.prune.weights import Weights


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


class Failing(nn.Module):
    """Fails when it is called for the n-th time."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.left = at
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return x


# Not the fifth: that is where a replay is tried out, and if it fails, the whole model is run.
@pytest.mark.parametrize("at", [n for n in range(1, 13) if n != 5])
@pytest.mark.parametrize("error", [ValueError("my bug"), KeyboardInterrupt()])
def test_an_error_in_the_model(at: int, error: BaseException) -> None:
    """In the first pass, in those of a block, in the dense or the pruned model, for batch norms."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16),
        nn.Sequential(nn.Linear(16, 16), Failing(at, error), nn.BatchNorm1d(16)),
        nn.Linear(16, 16),
        nn.Linear(16, 8),
    ).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CalibrationError
    with pytest.raises(kind) as caught:
        prune_model(model, "2:4T", calibration=[torch.randn(24, 8), torch.randn(16, 8)])
    if kind is CalibrationError:
        assert "ValueError: my bug" in str(caught.value)
    assert model[1][1].left == 0
    assert model.training
    assert model[1].training
    assert not hooks_of(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == memory
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_layer_that_was_reached_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 16), Failing(1, ValueError("my bug")), nn.Linear(16, 8))
    with pytest.raises(CalibrationError, match=r"on batch 0 .*after layer '0': ValueError: my bug"):
        prune_model(model, "2:4T", calibration=torch.randn(4, 8))


def test_an_error_of_who_looks_on_is_not_the_models() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    (call,) = _calls(model)

    def look(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(model, call, {"0": model[0]}, look)
    assert not hooks_of(model)


def test_hooks_are_removed_when_they_cannot_all_be_set() -> None:
    class Odd(nn.Linear):
        def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(8, 8), Odd(8, 8))
    (call,) = _calls(model)
    with pytest.raises(KeyboardInterrupt):
        run(model, call, {"0": model[0], "1": model[1]}, lambda name, x, y: None)
    assert not hooks_of(model)


def test_a_model_that_catches_errors_is_stopped_all_the_same() -> None:
    class Catching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
            self.caught = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.two(self.one(x))
            except Exception:
                self.caught += 1
                return x

    model = Catching()
    prune_model(model, "2:4T", calibration=torch.randn(16, 8))
    assert model.caught == 0


def _calls(model: nn.Module) -> Any:
    from transposable.prune.calibration import record

    return record(model, torch.randn(4, 8), None, None)


@pytest.mark.parametrize("at", range(1, 9))
def test_an_interrupt_while_the_new_weights_are_written(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    weights = Weights({"0": model[0], "1": model[1]})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    for parameter in model.parameters():
        weights.set(parameter, torch.full_like(parameter, 7.0))
    copy = torch.Tensor.copy_
    left = [at]

    def interrupted(self: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] == 0:
            self.fill_(torch.nan)  # half written
            raise KeyboardInterrupt
        return copy(self, source)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        weights.commit()
    monkeypatch.undo()
    weights.restore()
    assert [parameter.data_ptr() for parameter in model.parameters()] == memory
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("batchnorm", ["match", "estimate"])
def test_batch_norms_after_an_error_at_the_very_end(
    batchnorm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = killed.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def failing(self: Weights) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Weights, "commit", failing)
    with pytest.raises(KeyboardInterrupt):
        prune_model(model, "2:4T", calibration=killed.data(), batchnorm=batchnorm)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_batch_norm_that_no_batch_reaches_keeps_its_statistics() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.spare = nn.Linear(8, 8), nn.BatchNorm1d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x)

    model = Spare()
    model.spare.running_mean.fill_(3.0)
    model.spare.num_batches_tracked.fill_(5)
    prune_model(model, "2:4T", calibration=[torch.randn(16, 8)], batchnorm="estimate")
    assert bool((model.spare.running_mean == 3).all())
    assert int(model.spare.num_batches_tracked) == 5


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), KeyboardInterrupt()])
def test_an_error_in_the_method(error: BaseException) -> None:
    class Broken(AdaPrune):
        def prune(self, problem: Any) -> Any:
            if problem.name == "2.out":
                raise error
            return super().prune(problem)

    model = killed.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(type(error)):
        prune_model(model, "2:4T", Broken(), killed.data())
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
    with pytest.raises(type(error)):
        prune_model(model, "2:4T", Broken(), killed.data(), inplace_progress=True)

    def changed(name: str) -> bool:
        return not torch.equal(before[name], model.state_dict()[name])

    assert changed("0.weight")
    assert not changed("2.out.weight")
