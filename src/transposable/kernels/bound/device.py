"""The dual bound of given masks on a GPU, in float64; shares nothing with the solver it checks."""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ("count", "rows", "cols", "down", "across", "n")


@triton.jit(do_not_specialize=SIZES)
def bound(
    scores_ptr,
    kept_ptr,
    u_ptr,
    v_ptr,
    value_ptr,
    gap_ptr,
    count,
    rows,
    cols,
    down,
    across,
    batch_stride,
    row_stride,
    col_stride,
    kept_batch,
    kept_row,
    kept_col,
    n,
    M: tl.constexpr,
    T: tl.constexpr,
    MAGNITUDE: tl.constexpr,
):
    """Dual value and relative gap of T tiles; see ``naive.py``."""
    tile = tl.program_id(0) * T + tl.arange(0, T)
    exists = tile < count
    strip = tile // across
    batch = (strip // down).to(tl.int64)[:, None, None]
    line = tl.arange(0, M)
    row = ((strip % down).to(tl.int64) * M)[:, None, None] + line[None, :, None]
    col = ((tile % across).to(tl.int64) * M)[:, None, None] + line[None, None, :]
    real = exists[:, None, None] & (row < rows) & (col < cols)
    at = batch * batch_stride + row * row_stride + col * col_stride
    score = tl.load(scores_ptr + at, mask=real, other=0.0).to(tl.float64)
    if MAGNITUDE:
        score = tl.abs(score)
    at = batch * kept_batch + row * kept_row + col * kept_col
    kept = tl.load(kept_ptr + at, mask=real, other=0) != 0
    lines_at = tile.to(tl.int64)[:, None] * M + line[None, :]
    u = tl.load(u_ptr + lines_at, mask=exists[:, None], other=0.0)
    v = tl.load(v_ptr + lines_at, mask=exists[:, None], other=0.0)
    full = tl.sum(tl.sum(real.to(tl.int32), 2), 1) == M * M
    # Negative prices of a cropped tile are raised to 0, which keeps the bound valid.
    u = tl.where(full[:, None] | (u > 0), u, 0.0)
    v = tl.where(full[:, None] | (v > 0), v, 0.0)

    endless = tl.abs(score) == float("inf")
    largest = tl.max(tl.max(tl.where(endless, 0.0, tl.abs(score)), 2), 1)
    largest = tl.where(largest == 0, 1.0, largest)
    stand_in = (largest * 16384.0)[:, None, None]
    score = tl.where(endless, tl.where(score > 0, stand_in, -stand_in), score)
    reduced = tl.where(real, score - u[:, :, None] - v[:, None, :], 0.0)
    short = tl.where(kept, -reduced, reduced)
    short = tl.where(short <= 0, 0.0, short)  # a NaN stays
    free_rows = u * (n - tl.sum(kept.to(tl.int32), 2))
    free_cols = v * (n - tl.sum(kept.to(tl.int32), 1))
    gap = tl.sum(tl.sum(short, 2), 1) + tl.sum(free_rows, 1) + tl.sum(free_cols, 1)
    primal = tl.sum(tl.sum(tl.where(kept, score, 0.0), 2), 1)
    scale = tl.sum(tl.sum(tl.where(kept & ~endless, tl.abs(score), 0.0), 2), 1)
    infinite = tl.max(tl.max(endless.to(tl.int32), 2), 1) > 0
    scale = tl.maximum(scale, tl.where(infinite, largest, largest * 4.76837158203125e-07))
    tl.store(value_ptr + tile, primal + gap, mask=exists)
    tl.store(gap_ptr + tile, gap / scale, mask=exists)
