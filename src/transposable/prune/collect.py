"""What the calibration says about some layers: one pass over the data, or two at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from transposable.errors import CalibrationError
from transposable.prune.calibration import Call
from transposable.prune.moments import Moments
from transposable.prune.plan import Layer
from transposable.prune.replay import Source, run
from transposable.prune.weights import Weights


@dataclass
class Collected:
    """The sums of a layer, in one part or two halves, and samples where they were asked for.

    ``rerouted``: the pruned model gave the layer other rows than the dense one, as a router of
    experts does, so that the outputs of the one are not what is wanted for the inputs of the other.
    """

    parts: tuple[Moments, ...]
    samples: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    rerouted: bool = False

    @property
    def moments(self) -> Moments:
        """The sums of all parts."""
        first, *others = self.parts
        return first if not others else first + others[0]


def collect(
    source: Source,
    layers: Sequence[Layer],
    counts: Sequence[Mapping[str, int]],
    weights: Weights,
    *,
    from_pruned: bool,
    halves: bool = False,
    samples: bool = False,
) -> dict[str, Collected]:
    """The sums of some layers by name; layers with one weight have them in common.

    What is wanted of layers without ``from_pruned``, or that are rerouted, is still to be added, by
    :func:`close`: it is what the dense layer gives for the same inputs.

    Args:
        source: what to run to see the inputs of these layers.
        counts: how often each layer is called, by batch.
        weights: gives the dense model.
        from_pruned: inputs come from the model as it is, with the layers before these pruned, and
            the wanted outputs from the dense model on the same batch. Otherwise both come from the
            dense model.
        halves: keep sums over each half of every batch, so that one can judge the other.
        samples: keep inputs and wanted outputs, too.

    Raises:
        CalibrationError: if the model fails, or a layer is given NaN or infinity.
    """
    modules = {layer.name: layer.module for layer in layers}
    by_name = {layer.name: layer for layer in layers}
    found: dict[str, Collected] = {}
    for layer in layers:
        first = found.get(layer.tied[0])
        found[layer.name] = first or Collected(
            tuple(Moments(layer.reading, layer.weight.device) for _ in range(1 + halves))
        )
    # Of layers that see the same tensor the products are the same.
    shared = _Shared()
    for number, called in enumerate(counts):
        count = sum(called.get(name, 0) for name in modules)
        if count == 0:
            continue
        wanted: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
        given = source.call(number, dense=not from_pruned)

        def keep(
            name: str,
            x: torch.Tensor,
            y: torch.Tensor,
            wanted: Mapping[str, list[torch.Tensor]] = wanted,
        ) -> None:
            wanted[name].append(_without_bias(by_name[name], y))

        def add(
            name: str,
            x: torch.Tensor,
            y: torch.Tensor,
            call: Call = given,
            wanted: Mapping[str, list[torch.Tensor]] = wanted,
        ) -> None:
            if from_pruned and not bool(x.isfinite().all()):
                raise CalibrationError(
                    f"prune_model: the input of layer {name!r} holds NaN or infinity in batch "
                    f"{call.number} once the layers before it are pruned; run the model in a wider "
                    "dtype, or leave the layers before it out with exclude"
                )
            layer = by_name[name]
            target = None
            if from_pruned:
                target = wanted[name].pop(0) if wanted[name] else None
                if target is None or target.shape != y.shape:
                    target = None
                    found[name].rerouted = True
            for part, x_part, y_part in _parts(layer, x, target, call.number, halves):
                moments = found[name].parts[part]
                moments.add(layer.module, x_part, y_part, shared.of(x, part))
            if samples:
                if target is None:
                    target = _without_bias(layer, y)
                found[name].samples.append((x.detach().clone(), target.detach().clone()))

        if from_pruned:
            with weights.all_dense():
                run(source.module, source.call(number, dense=True), modules, keep, count)
            run(source.module, given, modules, add, count)
            for name, left in wanted.items():
                found[name].rerouted |= bool(left)
        else:
            with weights.all_dense():
                run(source.module, given, modules, add, count)
        shared.forget()
    return found


def close(found: Mapping[str, Collected], layers: Sequence[Layer], weights: Weights) -> None:
    """Want of layers what they give, dense, for the inputs that they had: follows from the sums."""
    for layer in layers:
        if layer.name != layer.tied[0]:
            continue
        collected = found[layer.name]
        dense = layer.reading.matrix(weights.dense(layer.weight))
        for moments in collected.parts:
            moments.close(dense)
        if collected.rerouted:
            with weights.all_dense():
                collected.samples = [
                    (x, _without_bias(layer, layer.module.forward(x))) for x, _ in collected.samples
                ]


class _Shared:
    """Products of inputs with themselves, for as long as the same tensor comes again."""

    def __init__(self) -> None:
        self._input: torch.Tensor | None = None
        self._products: dict[int, dict[tuple[int, ...], torch.Tensor]] = {}

    def of(self, x: torch.Tensor, part: int) -> dict[tuple[int, ...], torch.Tensor]:
        if x is not self._input:
            self.forget()
            self._input = x
        return self._products.setdefault(part, {})

    def forget(self) -> None:
        self._input = None
        self._products = {}


def _parts(
    layer: Layer, x: torch.Tensor, y: torch.Tensor | None, number: int, halves: bool
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
    """An input and what is wanted of it, for each part that it is counted in."""
    if not halves:
        yield 0, x, y
    elif x.ndim <= layer.reading.space + 1 or len(x) == 1:  # a single sample
        yield number % 2, x, y
    else:
        cut = (len(x) + number % 2) // 2
        yield 0, x[:cut], None if y is None else y[:cut]
        yield 1, x[cut:], None if y is None else y[cut:]


def _without_bias(layer: Layer, y: torch.Tensor) -> torch.Tensor:
    bias = layer.bias
    if bias is None:
        return y
    return y - bias.reshape(-1, *[1] * layer.reading.space)
