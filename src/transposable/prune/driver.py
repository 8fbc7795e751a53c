"""Layer by layer: collect what the calibration says about a layer, prune it, go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from transposable.errors import CalibrationError
from transposable.prune.calibration import Call
from transposable.prune.collect import Collected, collect
from transposable.prune.methods.base import Method, Pruned
from transposable.prune.methods.mask_only import Magnitude
from transposable.prune.moments import Moments
from transposable.prune.plan import Layer
from transposable.prune.problem import LayerProblem
from transposable.prune.replay import Trace, trace
from transposable.prune.report import LayerReport
from transposable.prune.weights import Weights
from transposable.solvers import Solver
from transposable.verification import verify

PARALLEL_MEMORY = 2 << 30
"""Bytes of sums that are collected in one pass over the data, in parallel mode."""


@dataclass(frozen=True)
class Settings:
    """How all layers are pruned."""

    method: Method
    sequential: bool = True
    solver: str | Solver = "auto"
    keep_zeros: bool = True
    refit_bias: bool = True
    strict: bool = False


class Driver:
    """Prunes the layers of a model one after another.

    Args:
        model: in evaluation mode, without gradients.
        layers: what to prune, from :func:`transposable.prune.plan.plan`.
        calls: the calibration; none for a method that needs no data.
        weights: of these layers.
        settings: how.
        done: called after every layer with the share of the layers done and the layer's name.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        calls: Sequence[Call],
        weights: Weights,
        settings: Settings,
        done: Callable[[float, str], None],
    ) -> None:
        self.model = model
        self.layers = layers
        self.calls = calls
        self.weights = weights
        self.settings = settings
        self.reports: list[LayerReport] = []
        self._done = done

    def run(self) -> list[LayerReport]:
        """Prune all layers; what each was like is in the order in which they were pruned.

        Raises:
            CalibrationError: if the model rejects the data, or, with ``strict``, never uses it in
                one of the layers.
        """
        modules = {name: layer.module for name, layer in self.layers.items()}
        traced = trace(self.model, modules, self.calls)
        unreached = self._unreached(traced)
        for number, stage in enumerate(self._stages(traced)):
            started = time.perf_counter()
            found = collect(
                self.model,
                stage,
                self.calls,
                traced,
                self.weights,
                # Nothing is pruned yet before the first stage.
                from_pruned=self.settings.sequential and number > 0,
                samples=self.settings.method.needs_samples,
            )
            seconds = (time.perf_counter() - started) / len(stage)
            for layer in stage:
                self._prune(layer, found[layer.name], seconds)
        for layer in unreached:
            self._prune(layer, None, 0.0)
        return self.reports

    def _unreached(self, traced: Trace) -> list[Layer]:
        reached = {name for group in traced.groups for name in group}
        missing = [layer for layer in self.layers.values() if reached.isdisjoint(layer.tied)]
        if missing and self.calls and self.settings.strict:
            names = ", ".join(repr(layer.name) for layer in missing)
            raise CalibrationError(
                f"prune_model: the calibration never reached {names}; give data that does, leave "
                "them out with exclude, or pass strict=False to have them pruned by magnitude"
            )
        return missing

    def _stages(self, traced: Trace) -> Iterator[list[Layer]]:
        """Layers whose sums are collected together, in the order of their calls."""
        seen: set[str] = set()
        groups: list[list[Layer]] = []
        for names in traced.groups:
            tied = dict.fromkeys(other for name in names for other in self.layers[name].tied)
            new = [name for name in tied if name not in seen]
            seen.update(new)
            if new:
                groups.append([self.layers[name] for name in new])
        if self.settings.sequential:
            yield from groups
            return
        stage: list[Layer] = []
        held = 0
        for group in groups:
            needed = sum(Moments.memory(layer.reading) for layer in group)
            if stage and held + needed > PARALLEL_MEMORY:
                yield stage
                stage, held = [], 0
            stage += group
            held += needed
        if stage:
            yield stage

    def _prune(self, layer: Layer, collected: Collected | None, seconds: float) -> None:
        if layer.name != layer.tied[0]:  # its weight is pruned with the first of them
            self._finish(layer, self._like_first(layer))
            return
        started = time.perf_counter()
        dense = self.weights.dense(layer.weight)
        method = self.settings.method if collected is not None else Magnitude()
        problem = self._problem(layer, dense, collected)
        result = method.prune(problem)
        self._write(layer, problem, result)
        mask = layer.reading.weight(result.mask, dense.shape)
        self._check(layer)
        self._finish(
            layer,
            LayerReport(
                name=layer.name,
                shape=tuple(dense.shape),
                pattern=str(layer.pattern),
                method=method.name,
                kept=float(mask.count_nonzero()) / mask.numel(),
                magnitude=_share(dense, mask),
                violated=_violated(layer, dense),
                error_masked=self._error(problem, problem.weight * result.mask, collected),
                error=self._error(problem, result.weight, collected),
                samples=problem.count,
                seconds=(seconds, time.perf_counter() - started),
                note=self._note(collected),
                info=result.info,
                mask=mask,
            ),
        )

    def _problem(
        self, layer: Layer, dense: torch.Tensor, collected: Collected | None
    ) -> LayerProblem:
        data = collected or Collected(Moments.none(layer.reading, dense.device))
        problem = LayerProblem.of(
            layer.name,
            layer.reading.matrix(dense),
            data.moments,
            layer.pattern,
            self.settings.solver,
            # With several biases to one weight there is no common mean.
            centred=self.settings.refit_bias
            and collected is not None
            and layer.bias is not None
            and len(layer.tied) == 1,
            keep_zeros=self.settings.keep_zeros,
        )
        problem.module = layer.module
        problem.samples = data.samples
        return problem

    def _write(self, layer: Layer, problem: LayerProblem, result: Pruned) -> None:
        dense = self.weights.dense(layer.weight)
        self.weights.set(layer.weight, layer.reading.weight(result.weight, dense.shape))
        if problem.centred and layer.bias is not None:
            change = problem.bias_change(result.weight)
            self.weights.set(layer.bias, self.weights.dense(layer.bias) + change)

    def _check(self, layer: Layer) -> None:
        report = verify(
            layer.out_in(layer.weight.detach()).cpu(), layer.pattern, layout=layer.layout
        )
        if not report.ok or not bool(layer.weight.isfinite().all()):
            raise RuntimeError(
                f"prune_model: layer {layer.name!r} does not satisfy {layer.pattern} or is not "
                f"finite after {self.settings.method.name}; this is an error in the method"
            )

    def _error(
        self, problem: LayerProblem, weight: torch.Tensor, collected: Collected | None
    ) -> float | None:
        return None if collected is None else problem.relative_error(weight)

    def _note(self, collected: Collected | None) -> str:
        if collected is not None or not self.calls:
            return ""
        return "never reached by the calibration; pruned by magnitude"

    def _like_first(self, layer: Layer) -> LayerReport:
        first = next(report for report in self.reports if report.name == layer.tied[0])
        return replace(
            first, name=layer.name, seconds=(0.0, 0.0), note=f"shares the weight of {first.name}"
        )

    def _finish(self, layer: Layer, report: LayerReport) -> None:
        self.reports.append(report)
        self._done(len(self.reports) / len(self.layers), layer.name)


def _share(weight: torch.Tensor, mask: torch.Tensor) -> float:
    magnitude = weight.detach().abs().double()
    total = float(magnitude.sum())
    return float((magnitude * mask).sum()) / total if total > 0 else 1.0


def _violated(layer: Layer, dense: torch.Tensor) -> float:
    report = verify(layer.out_in(dense).cpu(), layer.pattern, layout=layer.layout)
    axes = [axis for axis in report.axes if axis.required]
    groups = sum(axis.groups for axis in axes)
    return sum(axis.violations for axis in axes) / groups if groups else 0.0
