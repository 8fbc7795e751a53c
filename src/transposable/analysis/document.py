"""The figures of a study as one JSON object."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

from transposable._version import __version__
from transposable.analysis.diversity import Diversity
from transposable.analysis.results import Kept, LayerRetention, Retention
from transposable.analysis.study import Study
from transposable.errors import PatternError

MOST_DIGITS: Final = 1000
"""Longer numbers of masks are given by their logarithm only."""


def document(found: Study) -> dict[str, Any]:
    """Every figure of a study, all layers included; numbers that JSON lacks are None.

    Example:
        >>> from torch import nn
        >>> from transposable.analysis.study import study
        >>> page = document(study(nn.Linear(8, 8), ["2:4T"]))
        >>> page["layers"][0]["patterns"]["2:4T"]["violations"]
        {'in': 0, 'out': 0}
    """
    kept = found.retention
    return {
        "version": __version__,
        "title": kept.title,
        "patterns": [str(pattern) for pattern in kept.patterns],
        "scores": kept.scores,
        "sample": kept.sample,
        "seed": kept.seed,
        "weights": kept.weights,
        "measured": kept.measured,
        "totals": {str(p): _total(kept, i) for i, p in enumerate(kept.patterns)},
        "layers": [_layer(layer) for layer in kept.layers],
        "failed": [dataclasses.asdict(one) for one in kept.failed],
        "excluded": [dataclasses.asdict(one) for one in kept.excluded],
        "diversity": {
            "block": found.block,
            "exact": {str(one.pattern): _diversity(one) for one in found.diversities},
            "paper": {str(one.pattern): _diversity(one) for one in found.paper},
        },
        "feasibility": [
            {
                **dataclasses.asdict(step.transition),
                "width": step.transition.width,
                "drawn": [
                    {
                        "rho": one.rho,
                        "draws": one.draws,
                        "estimate": one.estimate,
                        "standard_error": one.standard_error,
                        "expected": one.expected,
                    }
                    for one in step.drawn
                ],
            }
            for step in found.steps
        ],
        "notes": list(kept.notes),
        "seconds": found.seconds,
    }


def _total(kept: Retention, index: int) -> dict[str, Any]:
    total = kept.total(kept.patterns[index])
    figures = {
        field.name: getattr(total, field.name)
        for field in dataclasses.fields(total)
        if field.name not in ("pattern", "measured")
    }
    return {key: _finite(value) for key, value in figures.items()}


def _layer(layer: LayerRetention) -> dict[str, Any]:
    return {
        "name": layer.name,
        "shape": list(layer.shape),
        "dtype": layer.dtype,
        "layout": layer.layout,
        "weights": layer.weights,
        "measured": layer.measured,
        "zeros": layer.zeros,
        "patterns": {str(one.pattern): _kept(one) for one in layer.kept},
    }


def _kept(one: Kept) -> dict[str, Any]:
    figures = {
        "relative": one.relative,
        "of_dense": one.of_dense,
        "kept": one.kept,
        "unstructured": one.unstructured,
        "dense": one.dense,
        "solver": one.solver,
        "status": one.status,
        "gap": one.gap,
        "certificate": one.certificate,
        "groups": one.groups,
        "violations": one.violations,
        "promised": list(one.promised),
        "seconds": one.seconds,
    }
    return {key: _finite(value) for key, value in figures.items()}


def _diversity(one: Diversity) -> dict[str, Any]:
    return {
        "count": _digits(one),
        "log10": one.log10,
        "error": one.error,
        "bits_per_weight": one.bits_per_weight,
        "counted": one.counted,
    }


def _digits(one: Diversity) -> str | None:
    """The exact number as text: readers of JSON make doubles of numbers. None if estimated."""
    if one.log10 > MOST_DIGITS:
        return None
    try:
        return str(one.count)
    except PatternError:
        return None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
