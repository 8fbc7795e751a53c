"""The native core by itself: its dual bound against certify, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from score_families import FAMILIES, tiles
from transposable import Mask, Potentials, _core, certify


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    wrong=st.sampled_from([None, None, math.nan, math.inf]),
)
def test_dual_bound_agrees_with_certify(
    family: str, seed: int, rows: int, cols: int, wrong: float | None
) -> None:
    """Random masks and potentials, feasible or not: two implementations, one value."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(tiles(family, seed, 9, 1)[0, :rows, :cols].astype(np.float64))
    kept = torch.from_numpy(rng.random((rows, cols)) < 0.5)
    finite = scores[scores.isfinite()].abs()
    size = float(finite.max()) if finite.numel() else 1.0
    shape = (1, -(-rows // 4), -(-cols // 4), 4)
    u, v = (torch.from_numpy(rng.standard_normal(shape)) * size for _ in range(2))
    for d in range(shape[1]):  # entries of padded lines are 0
        u[:, d, :, max(rows - 4 * d, 0) :] = 0
    for a in range(shape[2]):
        v[:, :, a, max(cols - 4 * a, 0) :] = 0
    if wrong is not None:
        u[0, 0, 0, 0] = wrong
    value, worst = _core.dual_bound(scores[None], kept[None].contiguous(), 2, 4, False, 1, u, v)
    certificate = certify(scores, Mask(kept, "2:4T"), Potentials(u, v))
    assert worst == pytest.approx(certificate.worst_gap, rel=1e-9, abs=1e-12)
    scale = size * rows * cols * 2.0**14
    assert value == pytest.approx(certificate.bound, rel=1e-9, abs=1e-12 * scale, nan_ok=True)
    if wrong is not None:
        assert worst == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [True, False])
def test_kept_sum(dtype: torch.dtype, magnitude: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 50, 70, generator=generator).to(dtype).transpose(1, 2)
    kept = torch.rand(3, 70, 50, generator=generator) < 0.3
    expected = (scores.abs() if magnitude else scores).double()[kept].sum().item()
    for threads in (1, 4):
        found = _core.kept_sum(scores, kept, magnitude, threads)
        assert found == pytest.approx(expected, rel=1e-12)


SCORES = torch.ones(1, 8, 8)
KEPT = torch.zeros(1, 8, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SCORES, KEPT[:, :4].contiguous(), 2, 4, True, 1), "mask: shape"),
        ((SCORES, KEPT, 4, 4, True, 1), "pattern: 1 <= n < m <= 64"),
        ((SCORES, KEPT, 0, 4, True, 1), "pattern: "),
        ((SCORES, KEPT, 2, 65, True, 1), "pattern: "),
        ((SCORES.int(), KEPT, 2, 4, True, 1), "scores: dtype"),
        ((SCORES, KEPT, 2, 4, True, 1, torch.zeros(1, 2, 2, 4).double(), None), "both or none"),
        ((SCORES, KEPT, 2, 4, True, 1, *[torch.zeros(1, 2, 2, 8).double()] * 2), "potentials: "),
    ],
)
def test_shapes_and_dtypes_are_checked_again(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.exact(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (SCORES[0], KEPT, 2, 4, True, 1),
        (SCORES, KEPT.int(), 2, 4, True, 1),
        (SCORES, KEPT.repeat(1, 1, 2)[:, :, ::2], 2, 4, True, 1),
        (SCORES, KEPT, 2, 4, True, 1, *[torch.zeros(1, 2, 2, 4)] * 2),
        (None, KEPT, 2, 4, True, 1),
    ],
)
def test_buffers_of_the_wrong_kind(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _core.exact(*arguments)
