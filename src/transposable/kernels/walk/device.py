"""Masks by a walk over the sorted scores, on a GPU, without sorting.

Whether an entry is taken depends on what its row and its column hold by then, and so on the
entries of these two that come before it. An entry that comes first in its row and in its column,
among those still open, can be decided at once: a round decides all of them, in no more rounds than
the longest chain of such dependencies. See ``naive.py`` for the walk itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from transposable.kernels.fixed_point import (
    block_offsets,
    float_bits,
    inside,
    is_nan,
    most,
    ordered,
    place,
)

SIZES = ("count", "rows", "cols", "down", "across", "n")
LAST = tl.constexpr(-(2**62))


@triton.jit(do_not_specialize=SIZES)
def walk(
    scores_ptr,
    kept_ptr,
    nans_ptr,
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
    KIND: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    HOW: tl.constexpr,
):
    """T tiles: HOW is "keep", "prune" or "refill"; see ``fill``."""
    PRUNE: tl.constexpr = HOW == "prune"
    tile = tl.program_id(0) * T + tl.arange(0, T)
    batch, top, left, height, width = place(tile, count, rows, cols, down, across, M)
    real = inside(height, width, M)
    full = ((height == M) & (width == M))[:, None, None]
    offsets = block_offsets(batch, top, left, batch_stride, row_stride, col_stride, M)
    bits = float_bits(tl.load(scores_ptr + offsets, mask=real, other=0), KIND)
    nan = most(is_nan(bits).to(tl.int32)) > 0
    score = ordered(bits, MAGNITUDE)
    line = tl.arange(0, M)
    index = line[None, :, None] * M + line[None, None, :]
    unwanted = (score < 0) & ~full & real
    # The greatest key is first in the walk; ties go in row-major order, backwards to refill.
    later = index if HOW == "refill" else -index
    key = (-score if PRUNE else score).to(tl.int64) * (M * M) + later
    kept_at = kept_ptr + block_offsets(batch, top, left, kept_batch, kept_row, kept_col, M)
    if PRUNE:
        # What rows and columns have yet to lose.
        by_row = tl.maximum(width - n, 0)[:, None] + tl.zeros((T, M), tl.int32)
        by_col = tl.maximum(height - n, 0)[:, None] + tl.zeros((T, M), tl.int32)
        going = real & ((by_row > 0)[:, :, None] | (by_col > 0)[:, None, :] | unwanted)
    else:
        # What they have room for.
        by_row = tl.zeros((T, M), tl.int32) + n
        by_col = tl.zeros((T, M), tl.int32) + n
        going = real & ~unwanted
        if HOW == "refill":
            had = tl.load(kept_at, mask=real, other=0) != 0
            by_row -= tl.sum(had.to(tl.int32), 2)
            by_col -= tl.sum(had.to(tl.int32), 1)
            going = going & ~had & (by_row > 0)[:, :, None] & (by_col > 0)[:, None, :]
    going = going & ~nan[:, None, None]
    open_ = going.to(tl.int32)
    taken = tl.zeros((T, M, M), tl.int32)
    while tl.max(most(open_), 0) > 0:
        here = tl.where(open_ > 0, key, LAST)
        first = (here == tl.max(here, 2)[:, :, None]) & (here == tl.max(here, 1)[:, None, :])
        first = first & (open_ > 0)
        taken += first.to(tl.int32)
        by_row -= tl.sum(first.to(tl.int32), 2)
        by_col -= tl.sum(first.to(tl.int32), 1)
        if PRUNE:
            going = (by_row > 0)[:, :, None] | (by_col > 0)[:, None, :] | unwanted
        else:
            going = (by_row > 0)[:, :, None] & (by_col > 0)[:, None, :]
        open_ = tl.where(first | ~going, 0, open_)
    kept = (taken == 0) if PRUNE else (taken > 0)
    if HOW == "refill":
        kept = kept | had
    kept = kept & ~nan[:, None, None]
    tl.store(kept_at, kept.to(tl.int8), mask=real)
    total = tl.sum((nan & (tile < count)).to(tl.int32), 0)
    if total > 0:
        tl.atomic_add(nans_ptr, total)
