"""Matmuls of N:M weights on the CPU: a compressed format, its products, operators that train."""

from __future__ import annotations

from transposable.sparse.ops import nm_linear
from transposable.sparse.packed import Choice, Decide, PackedWeight, always_sparse
from transposable.sparse.stream import Blocking, Stream

__all__ = [
    "Blocking",
    "Choice",
    "Decide",
    "PackedWeight",
    "Stream",
    "always_sparse",
    "nm_linear",
]
