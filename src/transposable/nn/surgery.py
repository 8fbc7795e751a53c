"""sparsify and densify: dense modules into sparse ones and back, in place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from transposable.errors import LayerError, NoEffectWarning, ShardingError
from transposable.layout import Layout
from transposable.nn import bits
from transposable.nn.guard import guard, unguard
from transposable.nn.layer import (
    ATTRIBUTES,
    BUFFERS,
    SparseLayer,
    why_nothing_is_pruned,
)
from transposable.nn.masks import best_mask
from transposable.nn.selection import Names, Selected, is_fully_sharded, select, shown
from transposable.nn.sharding import is_sharded, whole
from transposable.pattern import Pattern
from transposable.solvers import Solver, make_solver


@dataclass(frozen=True, slots=True)
class Change:
    """One module that :func:`sparsify` or :func:`densify` changed.

    Attributes:
        name: the first name of the module in the model.
        kind: its dense class, for example "Linear".
        shape: of its weight, as stored.
        pattern: of its mask.
        kept: share of the weights that the mask keeps, by number.
        magnitude: share of the weights that the mask keeps, by the sum of magnitudes.

    Example:
        >>> from transposable import sparsify
        >>> (change,) = sparsify(nn.Linear(16, 8), "2:4T")
        >>> change.kind, change.shape, change.kept, 0.5 < change.magnitude < 1
        ('Linear', (8, 16), 0.5, True)
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
        >>> from transposable.nn import SparseLinear
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
    Layers that share a weight have equal masks; an embedding that shares it goes on to read it
    dense. From then on ``model.load_state_dict`` checks all patterns and masks before it loads.

    Args:
        model: any module; it may itself be one of these.
        pattern: for all selected layers, or a mapping from names to patterns, of which the first
            that matches a layer's name counts; without ``include`` it also selects.
        include: names of modules: globs over the whole name, or "re:" and a regular expression.
            Default: all modules of these classes.
        exclude: names that stay dense; wins over ``include``.
        solver: what finds the masks; default the exact one.

    Returns:
        A :class:`Change` for each module changed, in the model's order.

    Raises:
        SelectionError: if a name matches no such module, or nothing is selected.
        PatternError, SolverError: if a pattern or solver is none, or they do not fit.
        LayerError: if a selected layer is sparse already, computes its weight from something else,
            or is too small for its pattern; or if layers that share a weight get different ones.
        ShardingError: if a weight is sharded already.
        ScoresError: if a weight has a NaN, or no float dtype.
        DeviceError: if a weight is on the meta device.
        Nothing is changed then.

    Complexity: see :func:`transposable.find_mask`, once for each weight.

    Example:
        >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> [(change.name, str(change.pattern)) for change in sparsify(model, "2:4T")]
        [('0', '2:4T'), ('2', '2:4T')]

    Hubara et al., NeurIPS 2021 (transposable masks).
    """
    chosen_solver = make_solver(solver)
    chosen = select(model, pattern, include, exclude)
    for one in chosen:
        _check(one)
    _check_sizes(chosen)
    masks = _masks(model, chosen, chosen_solver)
    # Nothing below can fail: every error leaves the model as it was.
    changes = []
    for one, mask in zip(chosen, masks, strict=True):
        layout = one.kind.layout_of(one.module)
        one.module.__class__ = one.kind
        assert isinstance(one.module, SparseLayer)
        one.module._become_sparse(mask, one.pattern, layout)
        changes.append(_change(one.name, one.module))
    guard(model)
    return changes


def densify(model: nn.Module) -> list[Change]:
    """Turn the sparse modules of a model into plain ones, in place, with zeros in the weights.

        W <- W~

    Parameters keep their identity. A layer whose mask rests (a dense tail) keeps its weight. A
    weight that is shared, with an embedding for example, has the zeros for its other users too.

    Returns:
        A :class:`Change` for each module changed, in the model's order.

    Raises:
        LayerError: if a sparse layer was parametrized.
        ShardingError: if ``fully_shard`` was applied to a sparse layer itself.
        Nothing is changed then.

    Warns:
        NoEffectWarning: if the model has no sparse layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(16, 32))
        >>> changes = sparsify(model, "2:4T")
        >>> [change.kept for change in densify(model)], type(model[0]).__name__
        ([0.5], 'Linear')
    """
    layers = sparse_layers(model)
    if not layers:
        warnings.warn(
            f"densify: {type(model).__name__} has no sparse layer; nothing was changed",
            NoEffectWarning,
            stacklevel=2,
        )
    for name, layer in layers.items():
        _check_densifies(name, layer)
    for module in model.modules():
        if is_fully_sharded(module):
            # What is written into a weight gathered for a forward pass would be lost.
            module.reshard()  # type: ignore[operator]
    changes = [_change(name, layer) for name, layer in layers.items()]
    baked = set()
    for layer in layers.values():
        # The soft weighting would shrink a shared weight once for each of its layers.
        if layer.weighting != "dense" and id(layer.weight) not in baked:
            baked.add(id(layer.weight))
            layer.bake()
    for layer in layers.values():
        layer.become_dense()
    unguard(model)
    return changes


def _check(one: Selected) -> None:
    module, name = one.module, shown(one.name, one.module)
    if isinstance(module, SparseLayer):
        raise LayerError(
            f"sparsify: layer {name} is sparse already, with pattern {module.pattern}; densify the "
            "model first, or leave the layer out with include or exclude"
        )
    weight = module._parameters.get("weight")
    if weight is None:
        raise LayerError(
            f"sparsify: the weight of layer {name} is no Parameter but is computed from others "
            "(weight_norm, spectral_norm, torch.nn.utils.prune, ...), so a mask on it would not "
            f"last; remove that first, or leave the layer out with exclude={one.name!r}"
        )
    if is_fully_sharded(module) or is_sharded(weight):
        raise ShardingError(
            f"sparsify: the weight of layer {name} is sharded over processes already, and its mask "
            "is that of the whole weight; sparsify the model before fully_shard"
        )
    for attribute in (*BUFFERS, *ATTRIBUTES):
        if hasattr(module, attribute):
            raise LayerError(
                f"sparsify: layer {name} has an attribute {attribute!r} of its own, which a sparse "
                f"layer uses; rename it, or leave the layer out with exclude={one.name!r}"
            )


def _check_sizes(chosen: list[Selected]) -> None:
    """All layers that are too small in one error, so that they can be excluded at once."""
    small = {}
    for one in chosen:
        layout = one.kind.layout_of(one.module)
        weight: Any = one.module.weight
        reason = why_nothing_is_pruned(weight, one.pattern, layout, one.kind.stored_in_out)
        if reason is not None:
            small[one] = reason
    if small:
        first, reason = next(iter(small.items()))
        others = f" (and {len(small) - 1} more likewise)" if len(small) > 1 else ""
        names = [one.name for one in small]
        raise LayerError(
            f"sparsify: layer {shown(first.name, first.module)} cannot have pattern "
            f"{first.pattern}: {reason}{others}; leave it dense with "
            f"exclude={names if len(names) > 1 else names[0]!r}"
        )


def _check_densifies(name: str, layer: SparseLayer) -> None:
    if parametrize.is_parametrized(layer):
        raise LayerError(
            f"densify: layer {shown(name, layer)} was parametrized after it was made sparse; call "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if is_fully_sharded(layer):
        raise ShardingError(
            f"densify: fully_shard was applied to layer {shown(name, layer)} itself, which has the "
            "class that it made; apply fully_shard to the blocks around the layers, or load the "
            "full state dict into a model that is not sharded and densify that"
        )


def _masks(model: nn.Module, chosen: list[Selected], solver: Solver) -> list[torch.Tensor]:
    """The mask of each selected layer; layers that share a Parameter have the same."""
    owners: dict[int, tuple[str, tuple[Pattern, Layout, bool], torch.Tensor]] = {}
    for name, layer in sparse_layers(model).items():
        reading = _reading(layer.pattern, layer.layout, type(layer))
        owners.setdefault(id(layer.weight), (shown(name, layer), reading, layer.mask))
    masks = []
    for one in chosen:
        weight: Any = one.module.weight
        layout = one.kind.layout_of(one.module)
        reading = _reading(one.pattern, layout, one.kind)
        if id(weight) not in owners:
            mask = best_mask(weight, one.pattern, layout, one.kind.stored_in_out, solver, one.name)
            owners[id(weight)] = (shown(one.name, one.module), reading, mask)
        first, other, mask = owners[id(weight)]
        if other != reading:
            raise LayerError(
                f"sparsify: layers {first} and {shown(one.name, one.module)} share one weight and "
                f"would read it by different patterns ({other[0]} and {reading[0]}) or along "
                "different axes; give both the same pattern, or leave one dense with exclude"
            )
        masks.append(mask)
    return masks


def _reading(
    pattern: Pattern, layout: Layout, kind: type[SparseLayer]
) -> tuple[Pattern, Layout, bool]:
    """What a mask depends on; a transposable one not on how the weight is stored."""
    return pattern, layout, kind.stored_in_out and not pattern.transposable


def _change(name: str, layer: SparseLayer) -> Change:
    magnitude = whole(layer.weight).abs()
    total = magnitude.sum(dtype=torch.float64).item()
    kept = bits.kept(magnitude, layer.mask).sum(dtype=torch.float64).item()
    return Change(
        name,
        layer.dense_class.__name__,
        tuple(magnitude.shape),
        layer.pattern,
        layer.mask.count_nonzero().item() / layer.mask.numel(),
        kept / total if total > 0 else 1.0,
    )
