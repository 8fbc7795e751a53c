"""Which layers of a model are pruned to which pattern, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transposable.errors import DeviceError, LayerError, ScoresError, ShardingError
from transposable.layout import Layout
from transposable.nn.layer import SparseLayer, why_nothing_is_pruned
from transposable.nn.selection import Names, Selected, is_fully_sharded, select, shown
from transposable.nn.sharding import is_sharded
from transposable.pattern import Pattern
from transposable.prune.reading import Reading


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer to prune.

    Attributes:
        name: its first name in the model.
        module: dense, with a weight and perhaps a bias.
        pattern: what its weight will satisfy.
        reading: how it is a set of regressions.
        layout: how its weight [out, in, ...] is read as matrices.
        tied: the names of all selected layers that have this very weight, this one's included.
    """

    name: str
    module: nn.Module
    pattern: Pattern
    reading: Reading
    layout: Layout
    tied: tuple[str, ...]

    @property
    def weight(self) -> nn.Parameter:
        """The Parameter."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The Parameter, None without one."""
        bias: Any = self.module.bias
        return bias if isinstance(bias, nn.Parameter) else None

    def out_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor in the shape of the weight as [out, in, ...]."""
        return tensor.t() if self.reading.stored_in_out else tensor


def plan(
    model: nn.Module,
    pattern: str | Pattern | Mapping[str, str | Pattern],
    include: Names | None,
    exclude: Names,
) -> dict[str, Layer]:
    """The layers to prune by name, in the model's order.

    Raises:
        SelectionError, PatternError: see :func:`transposable.nn.sparsify`.
        LayerError: if a layer is sparse already, has no weight of its own, is too small for its
            pattern, or shares its weight with a module that is not pruned alike.
        ShardingError, DeviceError, ScoresError: if a weight is sharded, on the meta device, of no
            float dtype, or not finite.
    """
    chosen = select(model, pattern, include, exclude, "prune_model")
    for one in chosen:
        _check(one)
    owners: dict[int, list[Selected]] = {}
    for one in chosen:
        owners.setdefault(id(one.module.weight), []).append(one)
    _check_sharing(model, owners)
    layers = {}
    for one in chosen:
        tied = tuple(other.name for other in owners[id(one.module.weight)])
        layout = one.kind.layout_of(one.module)
        layers[one.name] = Layer(
            one.name, one.module, one.pattern, Reading.of(one.module), layout, tied
        )
    return layers


def _check(one: Selected) -> None:
    module, name = one.module, shown(one.name, one.module)
    if isinstance(module, SparseLayer):
        raise LayerError(
            f"prune_model: layer {name} is sparse already, with pattern {module.pattern}; call "
            "densify(model) first, which leaves its zeros in place"
        )
    weight = module._parameters.get("weight")
    if weight is None:
        raise LayerError(
            f"prune_model: the weight of layer {name} is no Parameter but is computed from others; "
            "call torch.nn.utils.parametrize.remove_parametrizations first, or leave it out with "
            "exclude"
        )
    if is_sharded(weight) or is_fully_sharded(module):
        raise ShardingError(
            f"prune_model: the weight of layer {name} is sharded; prune the whole model before "
            "fully_shard, on one process or with the calibration split over processes"
        )
    if weight.is_meta:
        raise DeviceError(
            f"prune_model: the weight of layer {name} is on the meta device and has no values; "
            "load the model first"
        )
    if not weight.is_floating_point() or weight.element_size() == 1:
        raise ScoresError(
            f"prune_model: the weight of layer {name} is {weight.dtype}; weights are float32, "
            "float64, float16 or bfloat16; dequantise the model, or leave it out with exclude"
        )
    if not bool(weight.isfinite().all()):
        raise ScoresError(
            f"prune_model: the weight of layer {name} holds NaN or infinity; repair the model, or "
            "leave the layer out with exclude"
        )
    layout = one.kind.layout_of(module)
    reason = why_nothing_is_pruned(weight, one.pattern, layout, one.kind.stored_in_out)
    if reason is not None:
        raise LayerError(
            f"prune_model: layer {name} cannot have pattern {one.pattern}: {reason}; leave it "
            f"dense with exclude={one.name!r}"
        )


def _check_sharing(model: nn.Module, owners: Mapping[int, list[Selected]]) -> None:
    for alike in owners.values():
        first = alike[0]
        for other in alike[1:]:
            if (other.pattern, Reading.of(other.module)) != (
                first.pattern,
                Reading.of(first.module),
            ):
                raise LayerError(
                    f"prune_model: layers {first.name!r} and {other.name!r} share one weight and "
                    f"would have it pruned in different ways ({first.pattern} and {other.pattern});"
                    " give both the same pattern, or leave both out with exclude"
                )
    selected = {id(one.module) for alike in owners.values() for one in alike}
    for name, module in model.named_modules():
        if id(module) in selected:
            continue
        for parameter in module._parameters.values():
            if id(parameter) in owners:
                layer = owners[id(parameter)][0].name
                raise LayerError(
                    f"prune_model: layer {layer!r} shares its weight with {name!r}, a "
                    f"{type(module).__name__} that is not pruned but would have the zeros too; "
                    f"leave the layer out with exclude={layer!r}"
                )
