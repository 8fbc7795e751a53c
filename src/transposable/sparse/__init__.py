"""Matmuls of N:M weights on CPUs and GPUs: compressed formats, products, and when they pay."""

from __future__ import annotations

from transposable.sparse.ask import Plan, Planned, decide_for, plan
from transposable.sparse.ask_conv import PlannedConv
from transposable.sparse.ask_semi import PlannedSemi
from transposable.sparse.choice import Choice, Decide, always_sparse
from transposable.sparse.conv import nm_conv2d
from transposable.sparse.ops import nm_linear
from transposable.sparse.packed import PackedWeight
from transposable.sparse.planner import Verdict
from transposable.sparse.semi import SemiWeight
from transposable.sparse.stream import Blocking, Stream

__all__ = [
    "Blocking",
    "Choice",
    "Decide",
    "PackedWeight",
    "Plan",
    "Planned",
    "PlannedConv",
    "PlannedSemi",
    "SemiWeight",
    "Stream",
    "Verdict",
    "always_sparse",
    "decide_for",
    "nm_conv2d",
    "nm_linear",
    "plan",
]
