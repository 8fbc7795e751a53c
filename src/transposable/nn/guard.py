"""A model with sparse layers checks a whole state dict before it loads the first tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from transposable.nn.checkpoint import check_state
from transposable.nn.layer import SparseLayer


def guard(model: nn.Module) -> None:
    """Make ``model.load_state_dict`` check all sparse layers first.

    Each layer checks what it is given by itself; but by then the layers before it are loaded.
    """
    if not _guards(model):
        model.register_load_state_dict_pre_hook(_check_all)  # type: ignore[no-untyped-call]


def unguard(model: nn.Module) -> None:
    """Undo :func:`guard` for a model, and for modules in it, that have no sparse layer any more."""
    for module in model.modules():
        if next(_sparse(module), None) is None:
            for key in _guards(module):
                del module._load_state_dict_pre_hooks[key]


def _check_all(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    for name, layer in _sparse(module):
        check_state(layer, state, f"{prefix}{name}." if name else prefix)


def _guards(module: nn.Module) -> list[int]:
    hooks = module._load_state_dict_pre_hooks.items()
    return [key for key, hook in hooks if getattr(hook, "hook", None) is _check_all]


def _sparse(module: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    # A shared module has its entries under each of its names.
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, SparseLayer):
            yield name, layer
