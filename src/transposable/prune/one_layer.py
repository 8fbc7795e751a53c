"""One layer: its problem solved, its weights written, checked and reported."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from transposable.errors import MethodError
from transposable.prune.collect import Collected
from transposable.prune.methods.base import Method, Pruned
from transposable.prune.methods.mask_only import Magnitude
from transposable.prune.moments import Moments
from transposable.prune.plan import Layer
from transposable.prune.problem import LayerProblem
from transposable.prune.report import LayerReport
from transposable.prune.weights import Weights
from transposable.solvers import Solver
from transposable.verification import verify


@dataclass(frozen=True)
class Settings:
    """How all layers are pruned."""

    method: Method
    sequential: bool = True
    solver: str | Solver = "auto"
    keep_zeros: bool = True
    refit_bias: bool = True

    @property
    def without_data(self) -> Method:
        """What prunes a layer that the calibration never reaches."""
        return Magnitude() if self.method.needs_data else self.method


def prune_layer(
    layer: Layer,
    collected: Collected | None,
    weights: Weights,
    settings: Settings,
    seconds: float,
    note: str,
) -> LayerReport:
    """Give a layer its new weight and bias.

    Args:
        layer: dense.
        collected: what the calibration says about it; None to prune it without.
        weights: of the model; the new ones are set there.
        settings: how.
        seconds: that the calibration of this layer took.
        note: for the report.
    """
    started = time.perf_counter()
    dense = weights.dense(layer.weight)
    method = settings.method if collected is not None else settings.without_data
    problem = _problem(layer, dense, collected, settings)
    result = method.prune(problem)
    _write(layer, problem, result, weights, settings)
    mask = layer.reading.weight(result.mask, dense.shape)
    _check(layer, method)

    def error(weight: torch.Tensor, change: torch.Tensor | None = None) -> float | None:
        return None if collected is None else problem.relative_error(weight, change)

    return LayerReport(
        name=layer.name,
        shape=tuple(dense.shape),
        pattern=str(layer.pattern),
        method=method.name,
        kept=float(mask.count_nonzero()) / mask.numel(),
        magnitude=_share(dense, mask),
        violated=_violated(layer, dense),
        error_masked=error(problem.weight * result.mask),
        error=error(result.weight, result.bias_change),
        samples=problem.count,
        seconds=(seconds, time.perf_counter() - started),
        note=note,
        info=result.info,
        mask=mask,
    )


def _problem(
    layer: Layer, dense: torch.Tensor, collected: Collected | None, settings: Settings
) -> LayerProblem:
    data = collected or Collected((Moments.none(layer.reading, dense.device),))
    matrix = layer.reading.matrix(dense)
    moments = data.moments
    # With several biases to one weight there is no common mean; a method that chooses the bias
    # itself sees the layer as it is; and of inputs that are all alike nothing but rounding is left.
    centred = (
        settings.refit_bias
        and not settings.method.needs_samples
        and collected is not None
        and layer.bias is not None
        and len(layer.tied) == 1
        and moments.varies
    )

    def posed(moments: Moments) -> LayerProblem:
        return LayerProblem.of(
            layer.name,
            matrix,
            moments,
            layer.pattern,
            settings.solver,
            centred=centred,
            keep_zeros=settings.keep_zeros,
        )

    problem = posed(moments)
    if len(data.parts) > 1:
        problem.halves = tuple(posed(part) for part in data.parts)
    problem.module = layer.module
    problem.samples = data.samples
    return problem


def _write(
    layer: Layer, problem: LayerProblem, result: Pruned, weights: Weights, settings: Settings
) -> None:
    dense = weights.dense(layer.weight)
    weights.set(layer.weight, layer.reading.weight(result.weight, dense.shape))
    change = problem.bias_change(result.weight) if problem.centred else result.bias_change
    if change is not None and layer.bias is not None:
        if len(layer.tied) > 1:
            raise MethodError(
                f"prune_model: {settings.method.name!r} chose one bias for the layers "
                f"{', '.join(map(repr, layer.tied))}, which share a weight but not the bias; leave "
                "them out with exclude, or use a method that keeps biases, such as 'sparsegpt'"
            )
        weights.set(layer.bias, weights.dense(layer.bias) + change)


def _check(layer: Layer, method: Method) -> None:
    report = verify(layer.out_in(layer.weight.detach()).cpu(), layer.pattern, layout=layer.layout)
    if not report.ok or not bool(layer.weight.isfinite().all()):
        raise RuntimeError(
            f"prune_model: layer {layer.name!r} does not satisfy {layer.pattern} or is not "
            f"finite after {method.name}; this is an error in the method"
        )


def _share(weight: torch.Tensor, mask: torch.Tensor) -> float:
    magnitude = weight.detach().abs().double()
    total = float(magnitude.sum())
    return float((magnitude * mask).sum()) / total if total > 0 else 1.0


def _violated(layer: Layer, dense: torch.Tensor) -> float:
    report = verify(layer.out_in(dense).cpu(), layer.pattern, layout=layer.layout)
    axes = [axis for axis in report.axes if axis.required]
    groups = sum(axis.groups for axis in axes)
    return sum(axis.violations for axis in axes) / groups if groups else 0.0
