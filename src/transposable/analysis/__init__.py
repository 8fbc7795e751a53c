"""Which pattern to build, and what it costs: diversity, feasibility, retention, a report."""

from __future__ import annotations

from transposable.analysis.diversity import Binomial, Diversity, Factor, diversity
from transposable.analysis.layers import Excluded
from transposable.analysis.retention import (
    Kept,
    LayerRetention,
    Retention,
    Total,
    retention,
)
from transposable.analysis.transition import Simulation, Transition, simulate, transition
from transposable.feasibility import feasibility
from transposable.prune.suggest import suggest_pattern, suggest_patterns

__all__ = [
    "Binomial",
    "Diversity",
    "Excluded",
    "Factor",
    "Kept",
    "LayerRetention",
    "Retention",
    "Simulation",
    "Total",
    "Transition",
    "diversity",
    "feasibility",
    "retention",
    "simulate",
    "suggest_pattern",
    "suggest_patterns",
    "transition",
]
