"""Patterns that decouple: row-wise, sequential, unstructured; each against a plain definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from score_families import make_scores
from strategies import FAMILIES
from transposable import RowWise, ScoresError, Sequential, Unstructured, find_mask, solve

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def plain(line: list[float], n: int, m: int) -> list[bool]:
    """The n largest of every m, ties to the lower index; a short group drops negative scores."""
    kept = [False] * len(line)
    for start in range(0, len(line), m):
        group = line[start : start + m]
        best = sorted(range(len(group)), key=lambda j: (-group[j], j))[:n]
        for j in best:
            kept[start + j] = len(group) == m or group[j] >= 0
    return kept


@settings(max_examples=150)
@given(
    family=st.sampled_from(FAMILIES),
    m=st.sampled_from([2, 3, 4, 4, 8, 8, 16, 16, 32, 33, 64]),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_row_wise(family: str, m: int, dtype: torch.dtype, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    rows, cols = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 300))
    scores = make_scores(family, rows, cols, data.draw(st.integers(0, 10**6))).to(dtype)
    if data.draw(st.booleans()):
        scores = scores.T.contiguous().T
    kept = solve(scores, f"{n}:{m}", RowWise()).mask.tensor
    assert kept.tolist() == [plain(line, n, m) for line in scores.double().tolist()]


@pytest.mark.parametrize("m", [4, 8, 16, 32])
def test_long_rows_and_both_zeros(m: int) -> None:
    """Rows longer than one segment; -0.0 and 0.0 are equal, so the lower index stays."""
    scores = make_scores("|ties|", 3, 5000, 1) * torch.where(torch.arange(5000) % 3 > 0, 1.0, -1.0)
    kept = solve(scores, f"{m // 2}:{m}", RowWise()).mask.tensor
    assert kept.tolist() == [plain(line, m // 2, m) for line in scores.tolist()]


@settings(max_examples=40)
@given(family=st.sampled_from(FAMILIES), m=st.integers(2, 9), data=st.data())
def test_sequential(family: str, m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    cols = data.draw(st.integers(1, 30))
    scores = make_scores(family, 2, cols, data.draw(st.integers(0, 10**6)))
    kept = solve(scores, f"{n}:{m}S", Sequential()).mask.tensor
    for line, flags in zip(scores.double().tolist(), kept.tolist(), strict=True):
        for start in range(0, cols, m):
            group = line[start : start + m] + [0.0] * max(0, start + m - cols)
            sums = [sum(group[w : w + n]) for w in range(m - n + 1)]
            found = sum(
                x for x, k in zip(line[start : start + m], flags[start:], strict=False) if k
            )
            assert found == pytest.approx(max(sums), rel=1e-12, abs=1e-12 * sum(map(abs, group)))


@settings(max_examples=40)
@given(family=st.sampled_from(FAMILIES), percent=st.integers(1, 99), data=st.data())
def test_unstructured(family: str, percent: int, data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    scores = make_scores(family, rows, cols, data.draw(st.integers(0, 10**6)))
    kept = solve(scores, f"{percent}%", Unstructured()).mask.tensor.flatten().tolist()
    flat = scores.flatten().tolist()
    count = -(-len(flat) * percent // 100)
    best = sorted(range(len(flat)), key=lambda k: (-flat[k], k))[:count]
    assert kept == [k in best for k in range(len(flat))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("pattern", ["2:4", "3:7"])
def test_nan_of_either_sign_is_found(dtype: torch.dtype, sign: float, pattern: str) -> None:
    for row, col in ((0, 0), (2, 1100), (4, 1233)):
        scores = torch.ones(5, 1234, dtype=dtype)
        scores[row, col] = math.copysign(math.nan, sign)
        scores[1, 5] = -math.inf
        for call in (solve, find_mask):  # scores as given, and magnitudes
            with pytest.raises(ScoresError, match=rf"index \({row}, {col}\) of"):
                call(scores, pattern, solver=RowWise())
