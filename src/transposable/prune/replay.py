"""Runs the calibration through a module as far as needed, and looks at some of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from transposable.errors import CalibrationError
from transposable.prune.calibration import Call

Watch = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Called with the name of a layer, its input and its output."""

Groups = tuple[tuple[str, ...], ...]
"""Names of layers that are given the same input, in the order of their first call."""


class End(BaseException):  # no error, and nothing that a model may catch
    """Nothing after this layer is needed."""


class Source(Protocol):
    """What is run to see the inputs of some layers: the model, or a part of it that they are in."""

    @property
    def module(self) -> nn.Module:
        """What is called."""

    def call(self, number: int, dense: bool) -> Call:
        """With what, so that it computes what it does in a whole run of the model."""


@dataclass(frozen=True)
class Whole:
    """The model itself, for every batch from the start."""

    module: nn.Module
    calls: Sequence[Call]

    def call(self, number: int, dense: bool) -> Call:
        """The batch, whatever the weights."""
        return self.calls[number]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients and without caches of keys and values.

    The modes of all modules and the settings of Hugging Face models are restored.
    """
    modes = [(module, module.training) for module in model.modules()]
    configs = {id(config): config for module in model.modules() if (config := _cached_by(module))}
    used = [(config, config.use_cache) for config in configs.values()]
    try:
        model.eval()
        for config, _ in used:
            config.use_cache = False
        with torch.no_grad():
            yield
    finally:
        for config, use_cache in used:
            config.use_cache = use_cache
        for module, training in modes:
            module.training = training


def _cached_by(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if isinstance(getattr(config, "use_cache", None), bool) else None


def run(
    module: nn.Module,
    call: Call,
    layers: Mapping[str, nn.Module] | None = None,
    watch: Watch = lambda name, x, y: None,
    end_after: int | None = None,
) -> Any:
    """Make one call of the model or of a block and watch some layers, if any.

    Returns:
        What the module returned, None if it was stopped after so many calls of layers.

    Raises:
        CalibrationError: if the module fails, with the layer that it had reached.
    """
    reached: list[str] = []
    watching = False

    def hook(name: str) -> Callable[..., None]:
        def look(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            nonlocal watching
            x = args[0] if args else next(iter(kwargs.values()))
            reached.append(name)
            watching = True
            watch(name, x, output)
            watching = False
            if len(reached) == end_after:
                raise End

        return look

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name, layer in (layers or {}).items():
            handles.append(layer.register_forward_hook(hook(name), with_kwargs=True))
        return call.run(module)
    except End:
        return None
    except Exception as error:
        if watching or isinstance(error, (CalibrationError, torch.OutOfMemoryError)):
            raise  # of what looks on, or of the machine, not of the model
        where = f", after layer {reached[-1]!r}" if reached else ", before any layer to prune"
        what = f"batch {call.number} ({call.shown()}){where if layers else ''}"
        raise CalibrationError(
            f"calibration: the model failed on {what}: "
            f"{type(error).__name__}: {error}; give batches that the model takes, or batch_to_args="
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def trace(
    model: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call]
) -> list[tuple[Groups, Mapping[str, int]]]:
    """For each batch the layers by common input, and how often each is called.

    Raises:
        CalibrationError: if the model fails, or a layer's output is not finite.
    """
    return [_trace(model, layers, call) for call in calls]


def _trace(
    model: nn.Module, layers: Mapping[str, nn.Module], call: Call
) -> tuple[Groups, Mapping[str, int]]:
    groups: list[list[str]] = []
    count: dict[str, int] = {}
    last: torch.Tensor | None = None

    def look(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        nonlocal last
        _check_finite(name, x, y, call.number)
        if name not in count:
            if x is last:
                groups[-1].append(name)
            else:
                groups.append([name])
            last = x
        else:
            last = None
        count[name] = count.get(name, 0) + 1

    run(model, call, layers, look)
    return tuple(map(tuple, groups)), count


def merged(groups: Sequence[Groups]) -> Groups:
    """The groups of several batches: each layer where the first batch that reaches it has it.

    Example:
        >>> merged([(("q", "k"), ("o",)), (("q", "k", "v"), ("o",), ("p",))])
        (('q', 'k'), ('o',), ('v',), ('p',))
    """
    seen: set[str] = set()
    found: list[tuple[str, ...]] = []
    for batch in groups:
        for group in batch:
            new = tuple(name for name in group if name not in seen)
            seen.update(new)
            if new:
                found.append(new)
    return tuple(found)


def _check_finite(name: str, x: torch.Tensor, y: torch.Tensor, number: int) -> None:
    for what, tensor in (("input", x), ("output", y)):
        if not bool(tensor.isfinite().all()):
            raise CalibrationError(
                f"calibration: the {what} of layer {name!r} holds NaN or infinity in batch "
                f"{number}; look for it in the data, or run the model in a wider dtype"
            )
