"""The readable twins in the place of the native functions."""

from __future__ import annotations

import pytest

from transposable import _core
from transposable.sparse import reference

FUNCTIONS = (
    "sparse_blocking",
    "sparse_index",
    "sparse_fill",
    "sparse_scatter",
    "sparse_matmul",
    "sparse_gradient_order",
    "sparse_weight_gradient",
    "sparse_conv2d",
    "sparse_conv2d_weight_gradient",
)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The readable twins in the place of the native functions."""
    for name in FUNCTIONS:
        monkeypatch.setattr(_core, name, getattr(reference, name))
