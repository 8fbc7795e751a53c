"""Scores as fixed-point integers inside a kernel: by shifts of their bits, no rounding mode asked.

Everything works on blocks [T tiles, M rows, M columns]: the compiler then gives a thread a whole
tile or a square part of one, and most of a sum over rows or columns is its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

NARROW_BITS = tl.constexpr(26)
WIDE_BITS = tl.constexpr(50)
INFINITE_BITS = tl.constexpr(14)
INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def float_bits(raw, KIND: tl.constexpr):
    """The bits of the float32 that a score is, int32; raw holds the bits as stored."""
    # One return: what follows a return is compiled, too.
    if KIND == "float32":
        bits = raw
    elif KIND == "bfloat16":
        bits = raw.to(tl.int32) << 16
    else:
        bits = raw.to(tl.float16, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True)
    return bits


@triton.jit
def place(
    tile,
    count,
    rows,
    cols,
    down,
    across,
    M: tl.constexpr,
):
    """Where tiles lie: (batch, first row, first column, rows, columns) as int64 and int32 [T].

    Tiles from ``count`` on have no row and no column.
    """
    strip = tile // across
    batch = strip // down
    top = (strip % down).to(tl.int64) * M
    left = (tile % across).to(tl.int64) * M
    exists = tile < count
    height = tl.where(exists, tl.minimum(rows - top, M), 0).to(tl.int32)
    width = tl.where(exists, tl.minimum(cols - left, M), 0).to(tl.int32)
    return batch.to(tl.int64), top, left, height, width


@triton.jit
def block_offsets(batch, top, left, batch_stride, row_stride, col_stride, M: tl.constexpr):
    """Offsets of the entries of tiles, int64 [T, M, M]."""
    row = tl.arange(0, M)
    start = batch * batch_stride + top * row_stride + left * col_stride
    by_row = row.to(tl.int64) * row_stride
    by_col = row.to(tl.int64) * col_stride
    return start[:, None, None] + by_row[None, :, None] + by_col[None, None, :]


@triton.jit
def inside(height, width, M: tl.constexpr):
    """Which entries of the blocks lie in their tile, [T, M, M]."""
    line = tl.arange(0, M)
    by_row = line[None, :, None] < height[:, None, None]
    by_col = line[None, None, :] < width[:, None, None]
    return by_row & by_col


@triton.jit
def most(values):
    """The largest of a tile: [T, M, M] to [T]."""
    return tl.max(tl.max(values, 2), 1)


@triton.jit
def quantise(bits, MAGNITUDE: tl.constexpr, WIDE: tl.constexpr):
    """Fixed-point scores of tiles, [T, M, M], with one power of two for each tile.

        score = q * 2^(top - 150 - spare),   |q| < 2^26, or 2^50 when WIDE

    where spare = 2, or 26 when WIDE (12 in a tile with infinities). Scores are rounded to the
    nearest, halves away from 0. Infinite scores count 2^14 times the largest finite one (WIDE), or
    as finite ones of the largest exponent (not WIDE: such tiles are not to be believed).

    Returns:
        q, top [T], whether any score lost bits [T], has an infinity [T], has a NaN [T].
    """
    size = bits & 0x7FFFFFFF
    nan = most((size > INFINITY).to(tl.int32)) > 0
    endless = size == INFINITY
    infinite = most(endless.to(tl.int32)) > 0
    finite = tl.where(size >= INFINITY, 0, size)
    largest = most(finite)
    largest = tl.where(largest == 0, 0x3F800000, largest)  # 1.0
    top = tl.maximum(largest >> 23, 1)
    exponent = finite >> 23
    mantissa = (finite & 0x7FFFFF) | tl.where(exponent > 0, 0x800000, 0)
    shift = top[:, None, None] - tl.maximum(exponent, 1)
    if WIDE:
        spare = tl.where(infinite, 12, 26)
        up = mantissa.to(tl.int64) << spare[:, None, None].to(tl.int64)
        shift = tl.minimum(shift, 60).to(tl.int64)
        half = (tl.full(shift.shape, 1, tl.int64) << shift) >> 1
        q = (up + half) >> shift
        lost = ((q << shift) != up).to(tl.int32)
        greatest = (largest & 0x7FFFFF) | tl.where(largest >> 23 > 0, 0x800000, 0)
        stand_in = greatest.to(tl.int64) << 26
        q = tl.where(endless, stand_in[:, None, None], q)
    else:
        up = mantissa << 2
        shift = tl.minimum(shift, 28)
        half = (tl.full(shift.shape, 1, tl.int32) << shift) >> 1
        q = (up + half) >> shift
        lost = ((q << shift) != up).to(tl.int32)
    if not MAGNITUDE:
        q = tl.where(bits < 0, -q, q)
    return q, top, most(lost) > 0, infinite, nan


@triton.jit
def unit(top, spare):
    """2^(top - 150 - spare) as float64, from its bits."""
    exponent = (top - 150 - spare + 1023).to(tl.int64)
    return (exponent << 52).to(tl.float64, bitcast=True)


@triton.jit
def ordered(bits, MAGNITUDE: tl.constexpr):
    """Integers in the order of the scores; both zeros are 0."""
    size = bits & 0x7FFFFFFF
    return size if MAGNITUDE else tl.where(bits < 0, -size, size)


@triton.jit
def is_nan(bits):
    """Where a score is NaN."""
    return (bits & 0x7FFFFFFF) > INFINITY
