"""Tensors of a file and the layers of the model that they were loaded into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from transposable.errors import FileError, SelectionError
from transposable.export.header import Entry
from transposable.export.reader import TensorFile
from transposable.export.record import Reading
from transposable.export.selection import Choice, Decision
from transposable.export.source import Source
from transposable.nn.layer import why_nothing_is_pruned
from transposable.nn.selection import Selected, select
from transposable.pattern import Pattern


@dataclass(frozen=True)
class Binding:
    """What is pruned, as tensors and as layers.

    Attributes:
        decisions: for every tensor of the file; those that are pruned have a layer.
        layers: name of the layer for each pruned tensor.
        biases: the tensor that holds the bias of a layer, by the name of its pruned tensor.
    """

    decisions: list[Decision]
    layers: Mapping[str, str]
    biases: Mapping[str, str]

    @property
    def readings(self) -> dict[str, Reading]:
        """How each pruned tensor is read."""
        return {d.tensor.name: d.reading for d in self.decisions if d.reading is not None}


def bind(
    source: Source,
    decisions: Sequence[Decision],
    model: nn.Module,
    pattern: Pattern,
    choice: Choice | None = None,
) -> Binding:
    """Find the layer of every tensor that is to be pruned.

    Names in a file may have the prefix of the base model or lack it ("bert.encoder..."). A name
    that leads to a layer is believed only if that layer holds the very values of the tensor.

    Args:
        source: the file.
        decisions: from :func:`transposable.export.plan`; of these, tensors that no layer of the
            model holds, or of which the pattern would prune nothing, stay dense.
        model: loaded from the source.
        pattern: the pattern.
        choice: the user's; what it includes must have a layer.

    Raises:
        FileError: if a layer holds other values than the file.
        SelectionError: if a tensor included by name has no layer, or nothing is left to prune.

    Complexity: one pass over the pruned tensors.
    """
    names = _Names(model, pattern)
    entries = {entry.name: (shard, entry) for shard, entry in source.tensors()}
    bound: list[Decision] = []
    layers: dict[str, str] = {}
    biases: dict[str, str] = {}
    for decision in decisions:
        if decision.reading is None:
            bound.append(decision)
            continue
        tensor = decision.tensor
        found = names.find(tensor.name)
        reason = names.why_not(tensor.name, found, pattern)
        if found is None or reason is not None:
            if choice is not None and choice.include:
                raise SelectionError(
                    f"--include: {tensor.name!r} cannot be pruned with calibration: {reason}; "
                    "--exclude it, or prune without --calibration"
                )
            bound.append(Decision(tensor, None, reason or ""))
            continue
        _check_values(*entries[tensor.name], found)
        in_out = found.kind.stored_in_out
        one_way = not pattern.transposable and pattern.structure != "unstructured"
        reading = Reading(pattern, found.kind.layout_of(found.module), in_out and one_way)
        bound.append(replace(decision, reading=reading))
        layers[tensor.name] = found.name
        bias = tensor.name.removesuffix("weight") + "bias"
        if bias in entries:
            biases[tensor.name] = bias
    if not layers:
        raise SelectionError(
            f"select: {type(model).__name__} has no layer to prune with calibration, which takes "
            "Linear and Conv layers; name the tensors to prune with --include, or prune without "
            "--calibration; 'transposable inspect' lists all"
        )
    return Binding(bound, layers, biases)


class _Names:
    """The layers of a model that can be pruned, by the names that files use."""

    def __init__(self, model: nn.Module, pattern: Pattern) -> None:
        by_module = {id(one.module): one for one in select(model, pattern, None, ())}
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._layers = {
            name: by_module[id(module)]
            for name, module in self._modules.items()
            if id(module) in by_module
        }
        self._prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def find(self, tensor: str) -> Selected | None:
        """The layer whose weight a tensor is."""
        return next((self._layers[n] for n in self._candidates(tensor) if n in self._layers), None)

    def why_not(self, tensor: str, found: Selected | None, pattern: Pattern) -> str | None:
        """Why a tensor is not pruned here, None if it can be."""
        if found is not None:
            weight = found.module.weight
            assert isinstance(weight, torch.Tensor)
            layout = found.kind.layout_of(found.module)
            return why_nothing_is_pruned(weight, pattern, layout, found.kind.stored_in_out)
        for name in self._candidates(tensor):
            if name in self._modules:
                kind = type(self._modules[name]).__name__
                return (
                    f"the weight of a layer of class {kind}, and calibration takes Linear and Conv"
                )
        return "no layer of the model by this name"

    def _candidates(self, tensor: str) -> list[str]:
        path = tensor.removesuffix(".weight")
        if path == tensor:
            return []
        return [path, self._prefix + path, path.removeprefix(self._prefix)]


def _check_values(shard: TensorFile, entry: Entry, found: Selected) -> None:
    weight = found.module.weight
    assert isinstance(weight, torch.Tensor)
    held = weight.detach()
    stored = shard.read(entry).to(held.dtype)
    if stored.shape == held.shape and bool(((stored == held) | stored.isnan()).all()):
        return
    raise FileError(
        f"read {shard.path}: layer {found.name!r} of the loaded model holds other values than "
        f"tensor {entry.name!r}; transformers converts the weights of this model while loading, "
        "so the result could not be written back; prune without --calibration, or in Python with "
        "transposable.prune.prune_model"
    )
