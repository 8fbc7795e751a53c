"""Calibration data in any form, recorded once as the calls of the model that it makes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from transposable.errors import CalibrationError

SAMPLES = 512
"""How many are taken of an iterable where nothing is said."""

Batch = tuple[tuple[Any, ...], dict[str, Any]]
BatchToArgs = Callable[[Any], Any]
Calibration = Iterable[Any] | Callable[[nn.Module], Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module: positional and keyword arguments, and how many samples they hold.

    ``number`` counts the calls of the model that the calibration makes, for messages.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int
    number: int = 0

    def run(self, module: nn.Module) -> Any:
        """Call a module with these arguments; what it changes in them is lost."""
        args, kwargs = self.args, self.kwargs
        if not is_plain((args, kwargs)):  # a cache of keys and values, for example, would grow
            args, kwargs = copy.deepcopy((args, kwargs))
        return module(*args, **kwargs)

    def shown(self) -> str:
        """The shapes of the tensors, for a message."""
        tensors = [t for t in pytree.tree_leaves((self.args, self.kwargs)) if _is_tensor(t)]
        shapes = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors]
        return ", ".join(shapes) or "no tensor"


def record(
    model: nn.Module,
    calibration: Calibration,
    samples: int | None,
    batch_to_args: BatchToArgs | None,
) -> list[Call]:
    """The calls of the model that a calibration makes, on the model's device.

    Args:
        model: is not run for an iterable; a callable runs it.
        calibration: one batch, or an iterable of batches, of which as many are taken as hold
            ``samples``; or a callable that is given the model and calls it, all of whose calls are
            taken unless ``samples`` is given.
        samples: default 512.
        batch_to_args: turns a batch into what the model is called with: a tuple of arguments, a
            dict of keyword arguments, or one argument.

    Raises:
        CalibrationError: if there is no batch, or a batch has no form that is known.
    """
    if samples is not None and (isinstance(samples, bool) or samples < 1):
        raise CalibrationError(
            f"calibration: received samples={samples!r}; it is how many samples to use, at least 1"
        )
    device = _device(model)
    if isinstance(calibration, (torch.Tensor, Mapping)):
        calibration = [calibration]  # one batch; to iterate over it would give rows, or keys
    if isinstance(calibration, Iterable) and not isinstance(calibration, nn.Module):
        calls = _from_batches(calibration, samples or SAMPLES, batch_to_args, device)
    elif callable(calibration):
        calls = _from_loop(model, calibration, samples)
    else:
        raise CalibrationError(
            f"calibration: received a {type(calibration).__name__}; give a DataLoader, an iterable "
            "of batches, or a function that is given the model and calls it"
        )
    if not calls:
        raise CalibrationError(
            "calibration: there was no batch (an iterator that was used up before, or an empty "
            "loader or loop); give a loader that starts again, or a list of batches"
        )
    return [replace(call, number=number) for number, call in enumerate(calls)]


def _from_batches(
    batches: Iterable[Any], samples: int, batch_to_args: BatchToArgs | None, device: torch.device
) -> list[Call]:
    calls: list[Call] = []
    taken = 0
    for number, batch in enumerate(batches):
        args, kwargs = _arguments(batch, batch_to_args, number)
        call = _call(args, kwargs)
        if call.samples == 0:
            raise CalibrationError(
                f"calibration: batch {number} ({call.shown()}) holds no sample; leave out empty "
                "batches"
            )
        if taken + call.samples > samples:
            call = _first(call, samples - taken)
        calls.append(_moved(call, device, number))
        taken += call.samples
        if taken >= samples:
            break
    return calls


def _arguments(batch: Any, batch_to_args: BatchToArgs | None, number: int) -> Batch:
    if batch_to_args is not None:
        batch = batch_to_args(batch)
        if isinstance(batch, tuple):
            return batch, {}
        return ((), dict(batch)) if isinstance(batch, Mapping) else ((batch,), {})
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)) and len(batch):
        batch = batch[0]
        if isinstance(batch, Mapping):
            return (), dict(batch)
    if not isinstance(batch, torch.Tensor):
        raise CalibrationError(
            f"calibration: batch {number} is a {type(batch).__name__}; a batch is a tensor, a "
            "tuple or list whose first element is one, or a dict of keyword arguments; pass "
            "batch_to_args=, a function from your batch to the model's arguments"
        )
    return (batch,), {}


def _from_loop(
    model: nn.Module, loop: Callable[[nn.Module], Any], samples: int | None
) -> list[Call]:
    calls: list[Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if samples is not None and sum(call.samples for call in calls) >= samples:
            return
        copied = pytree.tree_map(lambda v: v.clone() if _is_tensor(v) else v, (args, kwargs))
        if not is_plain(copied):
            copied = copy.deepcopy(copied)
        calls.append(_call(*copied))

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        loop(model)
    except Exception as error:
        raise CalibrationError(
            f"calibration: the function given failed in call {len(calls)} of the model: "
            f"{type(error).__name__}: {error}; it is called with the model and has to run it"
        ) from error
    finally:
        handle.remove()
    return calls


def _call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    sizes = [t.shape[0] for t in pytree.tree_leaves((args, kwargs)) if _is_tensor(t) and t.ndim]
    return Call(args, kwargs, sizes[0] if sizes else 1)


def _first(call: Call, samples: int) -> Call:
    """The first samples of a call: those of its tensors that have as many rows as the first."""

    def cut(value: Any) -> Any:
        whole = _is_tensor(value) and value.ndim and value.shape[0] == call.samples
        return value[:samples] if whole else value

    args, kwargs = pytree.tree_map(cut, (call.args, call.kwargs))
    return Call(args, kwargs, samples)


def _moved(call: Call, device: torch.device, number: int) -> Call:
    def move(value: Any) -> Any:
        return value.to(device) if _is_tensor(value) else value

    try:
        args, kwargs = pytree.tree_map(move, (call.args, call.kwargs))
    except (RuntimeError, NotImplementedError) as error:
        raise CalibrationError(
            f"calibration: batch {number} ({call.shown()}) cannot be moved to the model's device "
            f"{device}: {error}; give batches with values, on a device that this machine has"
        ) from error
    return Call(args, kwargs, call.samples)


def _device(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def is_plain(value: Any) -> bool:
    """Whether there are only tensors, numbers and text in it, which no model changes."""
    plain = (torch.Tensor, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
    return all(isinstance(leaf, plain) for leaf in pytree.tree_leaves(value))
