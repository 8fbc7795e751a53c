"""sparsify and densify: dense modules into sparse ones and back, in place."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from transposable.errors import LayerError, NoEffectWarning, SelectionError
from transposable.names import matcher
from transposable.nn.layer import SparseLayer, check_prunes
from transposable.nn.masks import best_mask
from transposable.nn.modules import SparseConv1d, SparseConv2d, SparseLinear
from transposable.nn.sharding import check_whole, reshard, whole
from transposable.pattern import Pattern
from transposable.solvers import Solver

Names = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Change:
    """One module that :func:`sparsify` or :func:`densify` changed.

    ``kept`` is the share of the weights that is kept, by number, and ``magnitude`` by magnitude.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    pattern: Pattern
    kept: float
    magnitude: float


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The sparse layers of a model by name, a shared module once.

    Example:
        >>> model = nn.Sequential(SparseLinear(8, 8, pattern="2:4T"), nn.ReLU())
        >>> list(sparse_layers(model))
        ['0']
    """
    return {
        name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)
    }


def sparsify(
    model: nn.Module,
    pattern: str | Pattern | Mapping[str, str | Pattern],
    *,
    include: Names | None = None,
    exclude: Names = (),
    solver: str | Solver = "auto",
) -> list[Change]:
    """Turn dense modules into sparse ones, in place: the forward pass sees masked weights.

        W~ = S * W,   S = argmax of sum S_ij |W_ij| over masks of the pattern

    Modules and Parameters keep their identity and the weights their values, so optimizers, hooks
    and references stay valid. Concerned are ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and
    transformers' ``Conv1D``, exactly these classes (a subclass may do anything with its weight).

    Args:
        model: any module; it may itself be one of these.
        pattern: for all selected layers, or a mapping from names to patterns, the first that
            matches a layer's name counts; without ``include`` it also selects.
        include: names of modules: globs over the whole name or "re:" and a regular expression.
            Default: all modules of these classes.
        exclude: names that stay dense; wins over ``include``.
        solver: what finds the masks; default the exact one.

    Returns:
        A :class:`Change` for each module changed, in the model's order.

    Raises:
        SelectionError: if a name matches no such module, or nothing is selected.
        LayerError: if a selected layer is sparse already, or the pattern prunes nothing of it.
        ScoresError: if a weight has a NaN.
        ShardingError: if a weight is cut over ranks already; sparsify before ``fully_shard``.
        Nothing is changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> [(change.name, str(change.pattern)) for change in sparsify(model, "2:4T")]
        [('0', '2:4T'), ('2', '2:4T')]
    """
    classes = _classes()
    for name, module in model.named_modules():
        # fully_shard changes classes too: such a layer would be taken for another kind of module.
        if isinstance(module, tuple(classes)) and not isinstance(module, SparseLayer):
            assert isinstance(module, nn.Module)
            check_whole(module.weight, f"sparsify: layer {name!r}")  # type: ignore[arg-type]
    chosen = _choose(model, pattern, include, exclude, classes)
    found = {}
    for name, (module, parsed) in chosen.items():
        if isinstance(module, SparseLayer):
            raise LayerError(
                f"sparsify: layer {name!r} is sparse already, with pattern {module.pattern}; "
                "densify the model first, or leave the layer out with include or exclude"
            )
        kind = classes[type(module)]
        layout = kind.layout_of(module)
        check_prunes(module.weight, parsed, layout, name)  # type: ignore[arg-type]
        mask = best_mask(module.weight, parsed, layout, kind.stored_in_out, solver, name)  # type: ignore[arg-type]
        found[name] = (kind, layout, mask)
    _check_shared(chosen)
    changes = []
    for name, (kind, layout, mask) in found.items():
        module, parsed = chosen[name]
        module.__class__ = kind
        assert isinstance(module, SparseLayer)
        module._become_sparse(mask, parsed, layout)
        changes.append(_change(name, module))
    return changes


def densify(model: nn.Module) -> list[Change]:
    """Turn the sparse modules of a model into plain ones, in place, with zeros in the weights.

    Parameters keep their identity. A layer whose mask rests (a dense tail) keeps its weight. Under
    FSDP all ranks must call it together, and shards stay shards.

    Returns:
        A :class:`Change` for each module changed.

    Warns:
        NoEffectWarning: if the model has no sparse layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(16, 32))
        >>> changes = sparsify(model, "2:4T")
        >>> [change.kept for change in densify(model)], type(model[0]).__name__
        ([0.5], 'Linear')
    """
    reshard(model)
    layers = sparse_layers(model)
    if not layers:
        warnings.warn(
            f"densify: {type(model).__name__} has no sparse layer; nothing was changed",
            NoEffectWarning,
            stacklevel=2,
        )
    changes = [_change(name, layer) for name, layer in layers.items()]
    for layer in layers.values():
        layer.become_dense()
    return changes


def _change(name: str, layer: SparseLayer) -> Change:
    weight = whole(layer.weight)
    total = weight.abs().sum()
    kept = weight.abs()[layer.mask].sum()
    return Change(
        name,
        layer.dense_class.__name__,
        tuple(weight.shape),
        layer.pattern,
        layer.mask.count_nonzero().item() / layer.mask.numel(),
        (kept / total).item() if total > 0 else 1.0,
    )


def _classes() -> dict[type[nn.Module], type[SparseLayer]]:
    classes: dict[type[nn.Module], type[SparseLayer]] = {
        kind.dense_class: kind for kind in (SparseLinear, SparseConv1d, SparseConv2d)
    }
    # A model with a Conv1D has imported transformers; no other model needs to.
    if "transformers.pytorch_utils" in sys.modules:
        from transposable.nn.hf import SparseConv1D

        classes[SparseConv1D.dense_class] = SparseConv1D
    return classes


def _choose(
    model: nn.Module,
    pattern: str | Pattern | Mapping[str, str | Pattern],
    include: Names | None,
    exclude: Names,
    classes: Mapping[type[nn.Module], type[SparseLayer]],
) -> dict[str, tuple[nn.Module, Pattern]]:
    """The selected modules under their first name, with their patterns."""
    patterns = pattern if isinstance(pattern, Mapping) else {"*": pattern}
    parsed = {text: Pattern.parse(value) for text, value in patterns.items()}
    aliases: dict[int, list[str]] = {}
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) in classes or isinstance(module, SparseLayer):
            aliases.setdefault(id(module), []).append(name)
            modules[name] = module
    included = _select(modules, include, "include", model)
    excluded = _select(modules, exclude, "exclude", model) or set()
    keyed: dict[str, str] = {}
    for text in parsed:
        for name in _select(modules, [text], "pattern", model) or ():
            keyed.setdefault(name, text)
    chosen: dict[str, tuple[nn.Module, Pattern]] = {}
    used = set()
    for names in aliases.values():
        if any(name in excluded for name in names):
            continue
        keys = [keyed[name] for name in names if name in keyed]
        if not keys or (included is not None and not any(name in included for name in names)):
            continue
        used.add(keys[0])
        chosen[names[0]] = (modules[names[0]], parsed[keys[0]])
    if not chosen:
        raise SelectionError(
            f"sparsify: nothing is selected of {len(modules)} layers that can be sparse "
            f"({', '.join(list(modules)[:3]) or 'none in this model'}); give other names to "
            "include or exclude"
        )
    if isinstance(pattern, Mapping) and len(used) < len(parsed):
        idle = next(text for text in parsed if text not in used)
        raise SelectionError(
            f"sparsify: the name {idle!r} gives no layer its pattern, since earlier names or "
            "exclude take all that it matches; remove it, or put it first"
        )
    return chosen


def _select(
    modules: Mapping[str, nn.Module], names: Names | None, option: str, model: nn.Module
) -> set[str] | None:
    if names is None:
        return None
    selected = set()
    for text in [names] if isinstance(names, str) else names:
        predicate = matcher(text, f"sparsify ({option})")
        matched = {name for name in modules if predicate(name)}
        if not matched:
            raise SelectionError(_no_match(text, option, modules, model, predicate))
        selected |= matched
    return selected


def _no_match(
    text: str, option: str, modules: Mapping[str, nn.Module], model: nn.Module, predicate: Any
) -> str:
    for name, module in model.named_modules():
        if name and predicate(name):
            return (
                f"sparsify ({option}): {text!r} matches {name!r}, a {type(module).__name__}, and "
                "none of the layers that can be sparse (exactly Linear, Conv1d, Conv2d and "
                f"transformers' Conv1D); for the layers inside it write '{name}.*'"
            )
    return (
        f"sparsify ({option}): {text!r} matches none of the {len(modules)} layers that can be "
        f"sparse, such as {', '.join(map(repr, list(modules)[:3])) or 'none'}; a glob is matched "
        f"against the whole name: for a part of it write '*{text}*'"
    )


def _check_shared(chosen: Mapping[str, tuple[nn.Module, Pattern]]) -> None:
    """Layers that share a Parameter need one mask."""
    owners: dict[int, tuple[str, Pattern]] = {}
    for name, (module, pattern) in chosen.items():
        first, other = owners.setdefault(id(module.weight), (name, pattern))
        if other != pattern:
            raise LayerError(
                f"sparsify: layers {first!r} and {name!r} share one weight and were given "
                f"{other} and {pattern}; give both the same pattern"
            )
