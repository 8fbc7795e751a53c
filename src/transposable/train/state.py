"""The controller's state dict: plain types and tensors, checked in full before anything changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from transposable.errors import CheckpointError
from transposable.nn.sharding import cut_like, whole
from transposable.train.history import Refresh

VERSION: Final = 1

_LOAD: Final = "MaskController.load_state_dict"
_TYPES: Final[dict[str, type]] = {
    "version": int,
    "step": int,
    "recipe": str,
    "refresh": str,
    "solver": str,
    "patterns": dict,
    "history": dict,
    "gradients": dict,
    "stepped": list,
    "added": list,
}
_COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Refresh))


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint says, read and found to fit."""

    step: int
    history: list[Refresh]
    gradients: dict[str, torch.Tensor] | None
    stepped: list[str]
    added: list[str]


def plain_names(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Things by their name in the bare model, whatever wraps its blocks.

    Example:
        >>> plain_names([("block._checkpoint_wrapped_module.fc", 1), ("head._orig_mod.fc", 2)])
        {'block.fc': 1, 'head.fc': 2}
    """
    wrappers = {"_orig_mod", "_checkpoint_wrapped_module"}
    return {
        ".".join(part for part in name.split(".") if part not in wrappers): value
        for name, value in named
    }


def describe(value: object) -> str:
    """A text by which two runs are compared: options included, addresses not."""
    return repr(value) if dataclasses.is_dataclass(value) else type(value).__qualname__


def pending_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the gradients that are there, whole on every rank."""
    return {
        name: whole(parameter.grad).clone()
        for name, parameter in plain_names(model.named_parameters()).items()
        if parameter.grad is not None
    }


def put_gradients(model: nn.Module, gradients: Mapping[str, torch.Tensor]) -> None:
    """Give all parameters these gradients, or none."""
    for name, parameter in plain_names(model.named_parameters()).items():
        gradient = gradients.get(name)
        if gradient is None:
            parameter.grad = None
        else:
            copy = gradient.detach().to(parameter.device, copy=True)
            parameter.grad = cut_like(copy, parameter)


def history_columns(history: list[Refresh]) -> dict[str, list[float]]:
    """Records as one list for each field: JSON can hold it, and it is read back to the last bit."""
    return {name: [getattr(record, name) for record in history] for name in _COLUMNS}


def read_state(
    state: Any, *, model: nn.Module, expected: Mapping[str, Any], patterns: Mapping[str, str]
) -> State:
    """Check a state dict against the controller that is to take it.

    Args:
        state: what was given to load_state_dict.
        model: whose gradients it may hold.
        expected: the descriptions of recipe, refresh and solver that have to agree.
        patterns: the pattern of each layer.

    Raises:
        CheckpointError: naming what is missing, of a wrong type, or different.
    """
    _check_types(state)
    for name in [*patterns, *state["patterns"]]:
        here, there = patterns.get(name, "dense"), state["patterns"].get(name, "dense")
        if here != there:
            raise CheckpointError(
                f"{_LOAD}: layer {name!r} is {here} in this model and {there} in the checkpoint; "
                "sparsify the model as the saved run did"
            )
    for key, mine in expected.items():
        if state[key] != mine:
            raise CheckpointError(
                f"{_LOAD}: the {key} is {mine}, and the saved run had {state[key]}; make the "
                "controller as the saved run did, or pass strict=False to go on differently"
            )
    for key in ("stepped", "added"):
        unknown = [name for name in state[key] if name not in patterns]
        if unknown:
            raise _corrupt(f"{key!r} names {unknown[0]!r}, which is no layer of the run")
    _check_gradients(state["gradients"], model)
    history = _read_history(state["history"])
    return State(state["step"], history, state["gradients"], state["stepped"], state["added"])


def _check_types(state: Any) -> None:
    if not isinstance(state, Mapping):
        raise _corrupt(f"it is a {type(state).__name__}, not a dict")
    version = state.get("version")
    if type(version) is not int or version != VERSION:
        raise CheckpointError(
            f"{_LOAD}: the state has version {version!r}, and this release reads "
            f"version {VERSION}; give the result of MaskController.state_dict()"
        )
    for key, kind in _TYPES.items():
        if key not in state:
            raise _corrupt(f"{key!r} is missing")
        optional = key == "gradients" and state[key] is None
        if not optional and type(state[key]) is not kind:
            raise _corrupt(f"{key!r} is a {type(state[key]).__name__}, not a {kind.__name__}")
    if state["step"] < 0:
        raise _corrupt(f"'step' is {state['step']}")


def _check_gradients(gradients: Mapping[str, Any] | None, model: nn.Module) -> None:
    parameters = plain_names(model.named_parameters())
    for name, gradient in (gradients or {}).items():
        parameter = parameters.get(name)
        if parameter is None:
            raise CheckpointError(
                f"{_LOAD}: the state has a gradient of {name!r}, which the model does not have; "
                "load it into the model it came from"
            )
        if not isinstance(gradient, torch.Tensor):
            raise _corrupt(f"the gradient of {name!r} is a {type(gradient).__name__}")
        if gradient.shape != parameter.shape or gradient.dtype != parameter.dtype:
            raise CheckpointError(
                f"{_LOAD}: the state has a gradient of {name!r} of shape {tuple(gradient.shape)} "
                f"and {gradient.dtype}, and the parameter has shape {tuple(parameter.shape)} and "
                f"{parameter.dtype}; load it into the model it came from"
            )


def _read_history(columns: Mapping[str, Any]) -> list[Refresh]:
    lists = {}
    for name in _COLUMNS:
        column = columns.get(name)
        if not isinstance(column, list) or not all(type(x) in (int, float) for x in column):
            raise _corrupt(f"its history has no column {name!r}")
        lists[name] = column
    if len({len(column) for column in lists.values()}) > 1:
        raise _corrupt("the columns of its history differ in length")
    return [Refresh(*row) for row in zip(*lists.values(), strict=True)]


def _corrupt(problem: str) -> CheckpointError:
    return CheckpointError(
        f"{_LOAD}: {problem}; the state is no result of MaskController.state_dict(), or it is "
        "damaged: load another checkpoint"
    )
