"""Plain N:M masks on a GPU: the rank of every score in its group."""

from __future__ import annotations

import triton
import triton.language as tl

from transposable.kernels.fixed_point import float_bits, is_nan, ordered

SIZES = ("count", "rows", "cols", "groups", "n")


@triton.jit(do_not_specialize=SIZES)
def row_wise(
    scores_ptr,
    kept_ptr,
    nans_ptr,
    count,
    rows,
    cols,
    groups,
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
):
    """The n largest of T groups of M; see ``naive.py``."""
    group = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    line = group // groups
    batch = (line // rows)[:, None]
    row = (line % rows)[:, None]
    place = tl.arange(0, M)[None, :]
    col = ((group % groups) * M)[:, None] + place
    real = (group < count)[:, None] & (col < cols)
    at = batch * batch_stride + row * row_stride + col * col_stride
    bits = float_bits(tl.load(scores_ptr + at, mask=real, other=0), KIND)
    nan = is_nan(bits)
    key = ordered(bits, MAGNITUDE)
    # Ties go to the lower place; entries behind the edge come last of all.
    key = tl.where(real, key, -2147483647)
    above = key[:, None, :] > key[:, :, None]
    tied = (key[:, None, :] == key[:, :, None]) & (place[:, None, :] < place[:, :, None])
    kept = tl.sum((above | tied).to(tl.int32), 2) < n
    cropped = ((group % groups) * M + M > cols)[:, None]
    kept = kept & ~(cropped & (key < 0))
    found = tl.max(nan.to(tl.int32), 1)
    kept = kept & (found == 0)[:, None]
    at = batch * kept_batch + row * kept_row + col * kept_col
    tl.store(kept_ptr + at, kept.to(tl.int8), mask=real)
    total = tl.sum(found, 0)
    if total > 0:
        tl.atomic_add(nans_ptr, total)
