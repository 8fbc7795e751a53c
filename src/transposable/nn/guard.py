"""A model with sparse layers checks a whole state dict before it loads the first tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from transposable.nn.checkpoint import check_state
from transposable.nn.layer import SparseLayer


def guard(model: nn.Module) -> None:
    """Make ``load_state_dict`` check all sparse layers of a model, or of a module in it, first.

    Each layer checks what it is given by itself; but by then the layers before it are loaded. The
    model checks also when it is loaded as part of a wrapper, the modules in it only when
    ``load_state_dict`` is called on them: a mask is read twice in all, not once for each level.
    """
    for module in model.modules():
        if not isinstance(module, SparseLayer) and next(_sparse(module), None) is not None:
            hook = _check if module is model else _check_outermost
            if hook not in [found for _, found in _guards(module)]:
                module.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]


def unguard(model: nn.Module) -> None:
    """Undo :func:`guard` for a model, and for modules in it, that have no sparse layer any more."""
    for module in model.modules():
        if next(_sparse(module), None) is None:
            for key, _ in _guards(module):
                del module._load_state_dict_pre_hooks[key]


def _check(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    for name, layer in _sparse(module):
        check_state(layer, state, f"{prefix}{name}.")


def _check_outermost(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    if not prefix:
        _check(module, state, prefix)


def _guards(module: nn.Module) -> list[tuple[int, Any]]:
    hooks = [
        (key, getattr(it, "hook", None)) for key, it in module._load_state_dict_pre_hooks.items()
    ]
    return [(key, hook) for key, hook in hooks if hook in (_check, _check_outermost)]


def _sparse(module: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    # A shared module has its entries under each of its names.
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, SparseLayer):
            yield name, layer
