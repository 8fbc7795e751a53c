"""Which modules of a model are made sparse, by their names, and with which pattern."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

from transposable.errors import PatternError, SelectionError
from transposable.names import matcher
from transposable.nn.layer import SparseLayer
from transposable.nn.modules import SparseConv1d, SparseConv2d, SparseLinear
from transposable.pattern import Pattern

Names = str | Collection[str]

_KINDS = "exactly nn.Linear, nn.Conv1d, nn.Conv2d and transformers' Conv1D"


@dataclass(frozen=True, slots=True)
class Selected:
    """A module under its first name, what it becomes, and its pattern."""

    name: str
    module: nn.Module
    kind: type[SparseLayer]
    pattern: Pattern


def shown(name: str, module: nn.Module) -> str:
    """A module's name for a message; the root of a model has none."""
    return repr(name) if name else f"{type(module).__name__} (the model itself)"


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to this very module, which gives it a class of its own.

    Example:
        >>> is_fully_sharded(nn.Linear(2, 2))
        False
    """
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def select(
    model: nn.Module,
    pattern: str | Pattern | Mapping[str, str | Pattern],
    include: Names | None,
    exclude: Names,
    operation: str = "sparsify",
) -> list[Selected]:
    """The selected modules in the model's order, a shared one once; see :func:`sparsify`.

    A module with several names is excluded by any of them, and included by any other. Messages
    name the ``operation`` that asks.

    Raises:
        SelectionError: if a name matches no layer, or nothing is selected.
        PatternError: if a pattern cannot be read.
    """
    grouped = isinstance(pattern, Mapping)
    parsed = _patterns(pattern, operation)
    modules: dict[str, nn.Module] = {}
    kinds: dict[int, type[SparseLayer]] = {}
    aliases: dict[int, list[str]] = {}
    classes = _classes()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = _kind(module, classes)
        if kind is not None:
            modules[name] = module
            kinds[id(module)] = kind
            aliases.setdefault(id(module), []).append(name)

    def matches(text: str, option: str) -> set[str]:
        predicate = matcher(text, f"{operation} ({option})")
        matched = {name for name in modules if predicate(name)}
        if not matched and (grouped or option != "pattern"):
            raise SelectionError(
                _no_match(text, f"{operation} ({option})", modules, model, predicate)
            )
        return matched

    included = None
    if include is not None:
        included = set().union(
            *(matches(text, "include") for text in _names(include, f"{operation} (include)"))
        )
    excluded = set().union(
        *(matches(text, "exclude") for text in _names(exclude, f"{operation} (exclude)"))
    )
    keyed = {text: matches(text, "pattern") for text in parsed}
    chosen = []
    used = set()
    for known in aliases.values():
        if not excluded.isdisjoint(known) or (included is not None and included.isdisjoint(known)):
            continue
        key = next((text for text, matched in keyed.items() if not matched.isdisjoint(known)), None)
        if key is None:
            continue
        used.add(key)
        module = modules[known[0]]
        chosen.append(Selected(known[0], module, kinds[id(module)], parsed[key]))
    if not chosen:
        raise SelectionError(f"{operation}: {_nothing(modules, model)}")
    if grouped and len(used) < len(parsed):
        idle = next(text for text in parsed if text not in used)
        raise SelectionError(
            f"{operation}: the name {idle!r} gives no layer its pattern, since earlier names, "
            "include or exclude leave it none of those that it matches; remove it, or put it first"
        )
    return chosen


def _classes() -> dict[type[nn.Module], type[SparseLayer]]:
    classes: dict[type[nn.Module], type[SparseLayer]] = {
        kind.dense_class: kind for kind in (SparseLinear, SparseConv1d, SparseConv2d)
    }
    # A model with a Conv1D has imported transformers; no other model needs to.
    if "transformers.pytorch_utils" in sys.modules:
        from transposable.nn.hf import SparseConv1D

        classes[SparseConv1D.dense_class] = SparseConv1D
    return classes


def _kind(
    module: nn.Module, classes: Mapping[type[nn.Module], type[SparseLayer]]
) -> type[SparseLayer] | None:
    if isinstance(module, SparseLayer):
        return type(module)
    kind = type(module)
    # So that sparsify can say what is wrong, rather than pass over such a layer.
    return classes.get(kind.__bases__[-1] if is_fully_sharded(module) else kind)


def _patterns(
    pattern: str | Pattern | Mapping[str, str | Pattern], operation: str
) -> dict[str, Pattern]:
    if not isinstance(pattern, Mapping):
        return {"*": Pattern.parse(pattern)}
    for text in pattern:
        if not isinstance(text, str):
            raise SelectionError(
                f"{operation} (pattern): received {text!r} as a name; it is a string, for example "
                "{'encoder.*': '2:4T'}"
            )
    if not pattern:
        raise PatternError(
            f"{operation}: received an empty mapping, which gives no layer a pattern; write for "
            "example '2:4T', or {'mlp.*': '2:4T', 'attn.*': '4:8T'}"
        )
    return {text: Pattern.parse(value) for text, value in pattern.items()}


def _names(names: Names, option: str) -> list[str]:
    if isinstance(names, str):
        return [names]
    if isinstance(names, Collection) and all(isinstance(name, str) for name in names):
        return list(names)
    raise SelectionError(
        f"{option}: received {names!r}; it is a name or a list of names: globs over the "
        "whole name, or 're:' and a regular expression"
    )


def _nothing(modules: Mapping[str, nn.Module], model: nn.Module) -> str:
    if not modules:
        return (
            f"{type(model).__name__} has no layer that can be sparse ({_KINDS}); give a "
            "model that has one"
        )
    return (
        f"nothing is selected of {len(modules)} layers that can be sparse, such as "
        f"{_examples(modules)}; give other names to include or exclude"
    )


def _no_match(
    text: str,
    option: str,
    modules: Mapping[str, nn.Module],
    model: nn.Module,
    predicate: Callable[[str], bool],
) -> str:
    for name, module in model.named_modules():
        if name and predicate(name):
            return f"{option}: {text!r} matches {name!r}, {_why_not(name, module)}"
    return (
        f"{option}: {text!r} matches none of the {len(modules)} layers that can be "
        f"sparse, such as {_examples(modules)}; a glob is matched against the whole name: for a "
        f"part of it write '*{text}*'"
    )


def _why_not(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    if parametrize.is_parametrized(module):
        return (
            f"whose {', '.join(module.parametrizations)} is parametrized, so there is no weight to "  # type: ignore[arg-type]
            "mask; call torch.nn.utils.parametrize.remove_parametrizations first"
        )
    dense = next((base for base in _classes() if isinstance(module, base)), None)
    if dense is not None:
        return (
            f"a {kind}: a subclass of {dense.__name__} may use its weight in another way than "
            f"{dense.__name__} does (nn.MultiheadAttention reads that of its out_proj), and only "
            f"layers that are {_KINDS} can be sparse; replace it by one, or leave it out"
        )
    if any(True for _ in module.children()):
        return f"a {kind}, which is no layer itself; for the layers inside it write '{name}.*'"
    return f"a {kind}, and only layers that are {_KINDS} can be sparse; leave it out"


def _examples(modules: Mapping[str, nn.Module]) -> str:
    return ", ".join(map(repr, list(modules)[:3])) or "(there is none)"
