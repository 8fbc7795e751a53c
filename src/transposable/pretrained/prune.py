"""A pretrained model pruned on calibration samples and written with all else as it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from transposable.export.outputs import Outputs
from transposable.export.replace import ReplacedTensor, Replacer
from transposable.export.retention import relative
from transposable.export.selection import Decision
from transposable.export.source import Source
from transposable.pattern import Pattern
from transposable.pretrained.binding import Binding
from transposable.pretrained.text import TextSamples
from transposable.prune import LayerReport, Method, PruneReport, prune_model
from transposable.prune.api import Mode
from transposable.prune.reading import Reading
from transposable.solvers import Solver


@dataclass(frozen=True, slots=True)
class PretrainedReport:
    """What :func:`prune_pretrained` did.

    Attributes:
        pattern: of all pruned tensors.
        pruned: the tensors as written, with the report on the layer of each, in the file's order.
        dense: what was left dense, and why.
        model: of :func:`transposable.prune.prune_model`.
        notes: what the user should know.
        seconds: for pruning and writing.
    """

    pattern: Pattern
    pruned: tuple[tuple[ReplacedTensor, LayerReport], ...]
    dense: tuple[Decision, ...]
    model: PruneReport
    notes: tuple[str, ...]
    seconds: float

    @property
    def retention(self) -> float | None:
        """Kept magnitude of all pruned tensors relative to the best unstructured masks."""
        kept = sum(tensor.objective for tensor, _ in self.pruned)
        return relative(kept, sum(tensor.unstructured for tensor, _ in self.pruned))


def prune_pretrained(
    source: Source,
    model: nn.Module,
    binding: Binding,
    text: TextSamples,
    pattern: str | Pattern,
    out: str | os.PathLike[str] | None,
    *,
    method: str | Method = "adaprune",
    scores: str | None = None,
    mode: Mode = "sequential",
    solver: str | Solver = "auto",
    masks: str | os.PathLike[str] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> PretrainedReport:
    """Prune a loaded model on samples of text and write it; everything else as in the source.

    Args:
        source: the files that the model was loaded from.
        model: from :func:`load_model`; left pruned.
        binding: from :func:`bind`: what is pruned.
        text: from :func:`text_samples`.
        pattern: for example "4:8T".
        out: the directory to write; may be that of the source. None writes no weights.
        method, scores, mode, solver, progress: as in :func:`transposable.prune.prune_model`.
        masks: a file for the masks, one bit a weight.

    Returns:
        A :class:`PretrainedReport`.

    Raises:
        OutputError: if the output cannot be written; what was there before is untouched.
        CalibrationError, MethodError, SolverError, LayerError, ScoresError: see
            :func:`transposable.prune.prune_model`; nothing is written then.
    """
    started = time.perf_counter()
    pattern = Pattern.parse(pattern)
    readings = binding.readings
    outputs = Outputs(source, pattern, readings, out, masks)
    before = _biases(model, binding)
    with outputs:
        report = prune_model(
            model,
            pattern,
            method,
            text.batches,
            include=_layers(model, binding),
            scores=scores,
            mode=mode,
            samples=text.samples,
            solver=solver,
            progress=progress,
        )
        by_layer = {layer.name: layer for layer in report.layers}
        values = {tensor: _weight(model, layer) for tensor, layer in binding.layers.items()}
        after = _biases(model, binding)
        # A bias that did not change keeps its very bytes.
        values |= {name: bias for name, bias in after.items() if not bias.equal(before[name])}
        found = {tensor: by_layer[layer].mask for tensor, layer in binding.layers.items()}
        notes = {d.tensor.name: d.note for d in binding.decisions}
        written = outputs.write(Replacer(readings, values, found, notes).process)
    return PretrainedReport(
        pattern=pattern,
        pruned=tuple((tensor, by_layer[binding.layers[tensor.name]]) for tensor in written),
        dense=tuple(decision for decision in binding.decisions if not decision.pruned),
        model=report,
        notes=(*source.notes, *text.notes, *report.notes, *_overfit(report, model), *outputs.notes),
        seconds=time.perf_counter() - started,
    )


def _overfit(report: PruneReport, model: nn.Module) -> list[str]:
    """A warning where weights were fitted to fewer inputs than they are."""
    thin = [
        (layer, Reading.of(model.get_submodule(layer.name)).cols)
        for layer in report.layers
        if layer.error is not None and layer.error != layer.error_masked
    ]
    thin = [(layer, cols) for layer, cols in thin if layer.samples < cols]
    if not thin:
        return []
    layer, cols = max(thin, key=lambda pair: pair[1] - pair[0].samples)
    return [
        f"{len(thin)} layers were fitted to fewer inputs than they have features ({layer.name}: "
        f"{layer.samples:,} tokens, {cols:,} features): their errors are small on this text only; "
        "give more text"
    ]


def _layers(model: nn.Module, binding: Binding) -> list[str]:
    """The layers to prune: those of the tensors, and layers alike that share a weight with one."""
    owned = {
        (id(_weight(model, layer)), type(model.get_submodule(layer)))
        for layer in binding.layers.values()
    }
    return [
        name
        for name, module in model.named_modules()
        if (id(module._parameters.get("weight")), type(module)) in owned
    ]


def _weight(model: nn.Module, layer: str) -> torch.Tensor:
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _biases(model: nn.Module, binding: Binding) -> dict[str, torch.Tensor]:
    """Copies of the biases of the pruned layers, by the names of their tensors."""
    found = {}
    for tensor, name in binding.biases.items():
        bias = model.get_submodule(binding.layers[tensor]).bias
        if isinstance(bias, torch.Tensor):
            found[name] = bias.detach().clone()
    return found
