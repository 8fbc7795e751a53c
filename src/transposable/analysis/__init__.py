"""Which pattern to build, and what it costs: diversity, feasibility, retention, a report."""

from __future__ import annotations

from transposable.analysis.diversity import Binomial, Diversity, Factor, diversity
from transposable.analysis.document import document
from transposable.analysis.findings import findings
from transposable.analysis.layers import Excluded
from transposable.analysis.page import render
from transposable.analysis.plots import Drawing, draw_all, mask_picture
from transposable.analysis.results import Kept, LayerRetention, Retention, Total
from transposable.analysis.retention import retention
from transposable.analysis.study import Picture, Step, Study, study
from transposable.analysis.transition import Simulation, Transition, simulate, transition
from transposable.feasibility import feasibility
from transposable.prune.suggest import suggest_pattern, suggest_patterns

__all__ = [
    "Binomial",
    "Diversity",
    "Drawing",
    "Excluded",
    "Factor",
    "Kept",
    "LayerRetention",
    "Picture",
    "Retention",
    "Simulation",
    "Step",
    "Study",
    "Total",
    "Transition",
    "diversity",
    "document",
    "draw_all",
    "feasibility",
    "findings",
    "mask_picture",
    "render",
    "retention",
    "simulate",
    "study",
    "suggest_pattern",
    "suggest_patterns",
    "transition",
]
