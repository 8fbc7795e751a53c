"""One-shot pruning with a small calibration set: AdaPrune and what users know beside it."""

from __future__ import annotations

from transposable.feasibility import feasibility
from transposable.prune.api import prune_model
from transposable.prune.methods import (
    ALPS,
    METHODS,
    AdaPrune,
    Magnitude,
    Method,
    Pruned,
    PublishedAdaPrune,
    SparseGPT,
    Wanda,
)
from transposable.prune.problem import LayerProblem
from transposable.prune.report import LayerReport, PruneReport
from transposable.prune.scores import SCORES
from transposable.prune.suggest import suggest_pattern, suggest_patterns

__all__ = [
    "ALPS",
    "METHODS",
    "SCORES",
    "AdaPrune",
    "LayerProblem",
    "LayerReport",
    "Magnitude",
    "Method",
    "PruneReport",
    "Pruned",
    "PublishedAdaPrune",
    "SparseGPT",
    "Wanda",
    "feasibility",
    "prune_model",
    "suggest_pattern",
    "suggest_patterns",
]
