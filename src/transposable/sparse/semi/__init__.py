"""2:4 weights on the sparse tensor cores of NVIDIA GPUs: packed, multiplied, tuned, checked."""

from __future__ import annotations

from transposable.sparse.semi.estimator import estimate
from transposable.sparse.semi.formats import CUSPARSELT, CUTLASS, FORMATS, REFERENCE, Format
from transposable.sparse.semi.operand import Algorithm, Operand, hardware_pattern
from transposable.sparse.semi.operators import Packed, dgrad, linear, pack
from transposable.sparse.semi.tuner import Tuner
from transposable.sparse.semi.weight import SemiWeight

__all__ = [
    "CUSPARSELT",
    "CUTLASS",
    "FORMATS",
    "REFERENCE",
    "Algorithm",
    "Format",
    "Operand",
    "Packed",
    "SemiWeight",
    "Tuner",
    "dgrad",
    "estimate",
    "hardware_pattern",
    "linear",
    "pack",
]
