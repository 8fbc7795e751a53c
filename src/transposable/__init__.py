"""N:M sparsity that speeds up both passes: provably optimal transposable masks."""

from __future__ import annotations

from transposable.api import find_mask, solve
from transposable.certificate import Certificate, Potentials, certify
from transposable.errors import (
    DeviceError,
    FileError,
    LayoutError,
    MaskError,
    NoEffectWarning,
    PatternError,
    ScoresError,
    SelectionError,
    SolverError,
    TransposableError,
)
from transposable.layout import Layout
from transposable.mask import Mask
from transposable.pattern import Pattern
from transposable.solution import Solution, Status
from transposable.solvers import (
    Auto,
    Entropic,
    Exact,
    Exhaustive,
    Greedy,
    Reference,
    RowWise,
    Sequential,
    Solver,
    TwoApprox,
    Unstructured,
)
from transposable.verification import Report, verify

__version__ = "0.1.0"

__all__ = [
    "Auto",
    "Certificate",
    "DeviceError",
    "Entropic",
    "Exact",
    "Exhaustive",
    "FileError",
    "Greedy",
    "Layout",
    "LayoutError",
    "Mask",
    "MaskError",
    "NoEffectWarning",
    "Pattern",
    "PatternError",
    "Potentials",
    "Reference",
    "Report",
    "RowWise",
    "ScoresError",
    "SelectionError",
    "Sequential",
    "Solution",
    "Solver",
    "SolverError",
    "Status",
    "TransposableError",
    "TwoApprox",
    "Unstructured",
    "__version__",
    "certify",
    "find_mask",
    "solve",
    "verify",
]
