"""Runs the calibration through a model as far as needed, and looks at some of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transposable.errors import CalibrationError
from transposable.prune.calibration import Call

Watch = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Called with the name of a layer, its input and its output."""


class _EndError(Exception):
    """Nothing after this layer is needed."""


@dataclass(frozen=True)
class Trace:
    """In which order a model calls its layers.

    Attributes:
        groups: names of layers that are given the same input, in the order of their first call.
        counts: how often each is called, by batch.
    """

    groups: tuple[tuple[str, ...], ...]
    counts: tuple[Mapping[str, int], ...]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; the modes of all modules are restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def run(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calls: Sequence[Call],
    number: int,
    watch: Watch,
    end_after: int | None = None,
) -> None:
    """Make one call of the model and watch some layers; stop after so many calls of layers.

    Raises:
        CalibrationError: if the model fails, with the layer that it had reached.
    """
    reached: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            reached.append(name)
            watch(name, x, output)
            if len(reached) == end_after:
                raise _EndError

        return look

    handles = [
        layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        calls[number].run(model)
    except (_EndError, CalibrationError) as end:
        if isinstance(end, CalibrationError):
            raise
    except Exception as error:
        where = f"after layer {reached[-1]!r}" if reached else "before any layer to prune"
        raise CalibrationError(
            f"calibration: the model failed on batch {number} ({calls[number].shown()}), {where}: "
            f"{type(error).__name__}: {error}; give batches that the model takes, or batch_to_args="
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def trace(model: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call]) -> Trace:
    """The order of the layers, and which of them see the same input.

    Raises:
        CalibrationError: if the model fails, or a layer's output is not finite.
    """
    groups: list[list[str]] = []
    counts: list[Mapping[str, int]] = []
    seen: set[str] = set()
    for number in range(len(calls)):
        count: dict[str, int] = {}
        last: list[torch.Tensor | None] = [None]

        def look(
            name: str,
            x: torch.Tensor,
            y: torch.Tensor,
            number: int = number,
            count: dict[str, int] = count,
            last: list[torch.Tensor | None] = last,
        ) -> None:
            _check_finite(name, x, y, number)
            count[name] = count.get(name, 0) + 1
            if name not in seen:
                if x is last[0]:
                    groups[-1].append(name)
                else:
                    groups.append([name])
                seen.add(name)
                last[0] = x
            else:
                last[0] = None

        run(model, layers, calls, number, look)
        counts.append(count)
    return Trace(tuple(map(tuple, groups)), tuple(counts))


def _check_finite(name: str, x: torch.Tensor, y: torch.Tensor, number: int) -> None:
    for what, tensor in (("input", x), ("output", y)):
        if not bool(tensor.isfinite().all()):
            raise CalibrationError(
                f"calibration: the {what} of layer {name!r} holds NaN or infinity in batch "
                f"{number}; look for it in the data, or run the model in a wider dtype"
            )
