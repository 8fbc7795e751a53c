"""N:M sparsity that speeds up both passes: provably optimal transposable masks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transposable._version import __version__

if TYPE_CHECKING:
    from transposable.api import fill_mask, find_mask, solve
    from transposable.certificate import Certificate, Potentials, certify
    from transposable.errors import (
        CalibrationError,
        CheckpointError,
        CompressionError,
        ControllerError,
        DependencyError,
        DeviceError,
        FileError,
        HostRouteWarning,
        LayerError,
        LayoutError,
        MaskError,
        MethodError,
        NoEffectWarning,
        OutputError,
        PatternError,
        PlanCacheWarning,
        PlanError,
        RecipeError,
        ScoresError,
        SelectionError,
        ShardingError,
        SolverError,
        SparseFormatError,
        TransposableError,
    )
    from transposable.layout import Layout
    from transposable.mask import Mask
    from transposable.nn import compress, densify, load_compressed, save_compressed, sparsify
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
    from transposable.train import MaskController
    from transposable.verification import Report, verify

__all__ = [
    "Auto",
    "CalibrationError",
    "Certificate",
    "CheckpointError",
    "CompressionError",
    "ControllerError",
    "DependencyError",
    "DeviceError",
    "Entropic",
    "Exact",
    "Exhaustive",
    "FileError",
    "Greedy",
    "HostRouteWarning",
    "LayerError",
    "Layout",
    "LayoutError",
    "Mask",
    "MaskController",
    "MaskError",
    "MethodError",
    "NoEffectWarning",
    "OutputError",
    "Pattern",
    "PatternError",
    "PlanCacheWarning",
    "PlanError",
    "Potentials",
    "RecipeError",
    "Reference",
    "Report",
    "RowWise",
    "ScoresError",
    "SelectionError",
    "Sequential",
    "ShardingError",
    "Solution",
    "Solver",
    "SolverError",
    "SparseFormatError",
    "Status",
    "TransposableError",
    "TwoApprox",
    "Unstructured",
    "__version__",
    "certify",
    "compress",
    "densify",
    "fill_mask",
    "find_mask",
    "load_compressed",
    "save_compressed",
    "solve",
    "sparsify",
    "verify",
]

_HOMES = (
    "errors",
    "pattern",
    "layout",
    "verification",
    "mask",
    "certificate",
    "solution",
    "solvers",
    "api",
    "nn",
    "train",
)

_PACKAGES = ("analysis", "nn", "prune", "sparse", "train")


def __getattr__(name: str) -> Any:
    # Public names load on first use: torch takes seconds, and neither `transposable --help` nor an
    # interruption while it loads should wait for it.
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
