"""The layers of a model, wherever it lies: a torch module, a safetensors file, a directory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from transposable.errors import DeviceError, SelectionError
from transposable.export import Choice, Decision, Source, TensorFile, open_source, plan
from transposable.export.header import Entry
from transposable.export.policy import Tensor, default_reasons, impossible
from transposable.layout import Layout
from transposable.nn.selection import select

ROW = "2:4"
"""For a plain pattern the plan also says which weights are stored [in, out]."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight that can be pruned; it is read when asked for.

    ``stored_in_out`` is true where the stored tensor is the transpose of [out, in].
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    stored_in_out: bool
    load: Callable[[], torch.Tensor]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return int(torch.Size(self.shape).numel())

    def matrices(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor in the stored shape as [batch, out, in]."""
        return self.layout.matrices(tensor.mT if self.stored_in_out else tensor)


@dataclass(frozen=True, slots=True)
class Excluded:
    """A tensor that is not analysed, and why not."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Layers:
    """What :func:`open_layers` found: the layers, the tensors left out, notes on the file."""

    title: str
    layers: tuple[Layer, ...]
    excluded: tuple[Excluded, ...] = ()
    notes: tuple[str, ...] = ()


@contextmanager
def open_layers(
    model: nn.Module | Source | str | os.PathLike[str], choice: Choice | None = None
) -> Iterator[Layers]:
    """The layers of a model that can be pruned; files stay open until the end.

    Of a file those that ``transposable prune`` would prune, by the same policy and ``choice``; of a
    module all that ``sparsify`` would take, with their dense weights. Those of a module are in its
    order, those of a file by name, numbers as numbers. A model without any is no error here, unless
    ``choice`` asks for some.

    Raises:
        FileError: if a file cannot be read.
        SelectionError, LayoutError: if ``choice`` matches nothing or does not fit.
    """
    if isinstance(model, nn.Module):
        yield _of_module(model, choice or Choice())
    elif isinstance(model, Source):
        yield _of_source(model, choice)
    else:
        with open_source(model) as source:
            yield _of_source(source, choice)


def _of_module(model: nn.Module, choice: Choice) -> Layers:
    if choice.layouts or choice.groups:
        raise SelectionError(
            "analysis: layouts and groups are for files; the layers of a module say how their "
            "weights are read; leave them out"
        )
    try:
        selected = select(model, ROW, choice.include or None, choice.exclude, "analysis")
    except SelectionError:
        if choice.include or choice.exclude:
            raise
        selected = []
    layers, excluded = [], []
    for one in selected:
        weight = one.module.weight
        assert isinstance(weight, torch.Tensor)
        # The root of a model has no name of its own.
        name = one.name or type(model).__name__
        shape = tuple(weight.shape)
        if not weight.numel():
            excluded.append(Excluded(name, shape, "empty"))
            continue
        layers.append(
            Layer(
                name,
                shape,
                str(weight.dtype).removeprefix("torch."),
                one.kind.layout_of(one.module),
                one.kind.stored_in_out,
                _loader(name, weight),
            )
        )
    return Layers(type(model).__name__, tuple(layers), tuple(excluded))


def _loader(name: str, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        if weight.is_meta:
            raise DeviceError(
                f"analysis of layer {name!r}: the weight is on the meta device and has no values; "
                "materialise and load the model first"
            )
        return weight.detach().cpu()

    return load


def _of_source(source: Source, choice: Choice | None) -> Layers:
    try:
        decisions = plan(source, ROW, choice)
    except SelectionError:
        if choice is not None and (choice.include or choice.exclude):
            raise
        decisions = _all_dense(source)
    layers, excluded = [], []
    for decision, (shard, entry) in zip(decisions, source.tensors(), strict=True):
        if decision.reading is None:
            excluded.append(Excluded(entry.name, entry.shape, decision.reason))
            continue
        reading = decision.reading
        layers.append(
            Layer(
                entry.name,
                entry.shape,
                entry.dtype,
                reading.layout,
                reading.transposed,
                _reader(shard, entry),
            )
        )
    # Files hold their tensors by the alphabet: layer 10 before layer 2.
    layers.sort(key=lambda layer: _natural(layer.name))
    title = source.path.resolve().name
    return Layers(title, tuple(layers), tuple(excluded), tuple(source.notes))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that orders layer.2 before layer.10.

    Example:
        >>> sorted(["b.10", "b.2", "a"], key=_natural)
        ['a', 'b.2', 'b.10']
    """
    pieces = re.split(r"([0-9]+)", name)
    # A number by its length first: int refuses thousands of digits.
    numbers = (p.lstrip("0") if p.isdecimal() else None for p in pieces)
    return [
        (1, 0, piece) if number is None else (0, len(number), number)
        for piece, number in zip(pieces, numbers, strict=True)
        if piece
    ]


def _reader(shard: TensorFile, entry: Entry) -> Callable[[], torch.Tensor]:
    return lambda: shard.read(entry)


def _all_dense(source: Source) -> list[Decision]:
    """Nothing can be pruned: every tensor with its reason."""
    tensors = [Tensor(entry.name, entry.dtype, entry.shape) for _, entry in source.tensors()]
    reasons = default_reasons(tensors, source.config)
    return [
        Decision(tensor, None, impossible(tensor) or reasons.get(tensor.name, ""))
        for tensor in tensors
    ]
