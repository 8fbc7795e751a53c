"""How often a test made the native core do something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from transposable import _core

NAMES = ("index", "fill", "matmul", "weight_gradient", "conv2d", "conv2d_weight_gradient")


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Counts calls of the native sparse functions, by those of NAMES."""
    calls: Counter[str] = Counter()

    def counting(name: str) -> Any:
        native = getattr(_core, f"sparse_{name}")

        def call(*args: Any) -> Any:
            calls[name] += 1
            return native(*args)

        return call

    with patch.multiple(_core, **{f"sparse_{name}": counting(name) for name in NAMES}):
        yield calls
