"""Exact masks of 4 x 4 tiles on a GPU by comparing all of them: the time does not depend on scores.

With rows x0 .. x3 let d = x0 - x1, d' = x2 - x3 and e = (x0 + x1) - (x2 + x3). The 90 masks of 2:4
fall into 8 cases by what the two upper rows keep of each column: both, one or none. Twice the kept
score, less the sum of all, is then at best (halves(x): the two largest less the two smallest)

    one of each column:                   halves(d) + halves(d')
    one of b and c, both of a, or of z:   |d_b - d_c| + |d'_b - d'_c| + |e_a - e_z|     (6 cases)
    both or none of each column:          halves(e)

For 1:4 the upper rows take the columns a and b, the lower ones c and z, which gives, less the sum
of the lower rows,

    e_a + e_b + |d_a - d_b| + |d'_c - d'_z|     (6 cases)

and 3:4 is what 1:4 prunes of the negative scores. A mask is an int32: bit 4 i + j is entry (i, j).
"""

from __future__ import annotations

import triton
import triton.language as tl

from transposable.kernels.exact.device import SIZES, WIDE_TODO, append
from transposable.kernels.fixed_point import block_offsets, float_bits, place, quantise, unit

FAR = tl.constexpr(1 << 30)


@triton.jit
def lines(x):
    """The four parts of the last axis: [..., 4] to [...] each."""
    # Triton knows no starred lists.
    pairs = tl.reshape(x, x.shape[:-1] + [2, 2])  # noqa: RUF005
    even, odd = tl.split(pairs)
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def halves(x0, x1, x2, x3):
    """The two largest less the two smallest of four, and the bits of the two largest."""
    near = x0 + x1 - x2 - x3
    even = x0 + x2 - x1 - x3
    outer = x0 + x3 - x1 - x2
    value = tl.abs(near)
    bits = tl.where(near >= 0, 3, 12)
    better = tl.abs(even) > value
    value = tl.where(better, tl.abs(even), value)
    bits = tl.where(better, tl.where(even >= 0, 5, 10), bits)
    better = tl.abs(outer) > value
    value = tl.where(better, tl.abs(outer), value)
    bits = tl.where(better, tl.where(outer >= 0, 9, 6), bits)
    return value, bits


@triton.jit
def mixed(
    value, code, d, dd, e, A: tl.constexpr, Z: tl.constexpr, B: tl.constexpr, C: tl.constexpr
):
    """The better of the best so far and this case of 2:4."""
    first, second, both = d[B] - d[C], dd[B] - dd[C], e[A] - e[Z]
    here = tl.abs(first) + tl.abs(second) + tl.abs(both)
    up = tl.where(both >= 0, 0x0011 << A | 0x1100 << Z, 0x0011 << Z | 0x1100 << A)
    one = tl.where(first >= 0, 0x0001 << B | 0x0010 << C, 0x0001 << C | 0x0010 << B)
    other = tl.where(second >= 0, 0x0100 << B | 0x1000 << C, 0x0100 << C | 0x1000 << B)
    better = here > value
    return tl.where(better, here, value), tl.where(better, up | one | other, code)


@triton.jit
def apart(
    value, code, d, dd, e, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, Z: tl.constexpr
):
    """The better of the best so far and this case of 1:4."""
    first, second = d[A] - d[B], dd[C] - dd[Z]
    here = e[A] + e[B] + tl.abs(first) + tl.abs(second)
    one = tl.where(first >= 0, 0x0001 << A | 0x0010 << B, 0x0001 << B | 0x0010 << A)
    other = tl.where(second >= 0, 0x0100 << C | 0x1000 << Z, 0x0100 << Z | 0x1000 << C)
    better = here > value
    return tl.where(better, here, value), tl.where(better, one | other, code)


@triton.jit
def best_of_two(d, dd, e):
    """The best mask of 2:4; |x| < 2^26, so that all sums are below 2^30."""
    upper, upper_bits = halves(d[0], d[1], d[2], d[3])
    lower, lower_bits = halves(dd[0], dd[1], dd[2], dd[3])
    code = upper_bits | (15 - upper_bits) << 4 | lower_bits << 8 | (15 - lower_bits) << 12
    value = upper + lower
    value, code = mixed(value, code, d, dd, e, 0, 1, 2, 3)
    value, code = mixed(value, code, d, dd, e, 0, 2, 1, 3)
    value, code = mixed(value, code, d, dd, e, 0, 3, 1, 2)
    value, code = mixed(value, code, d, dd, e, 1, 2, 0, 3)
    value, code = mixed(value, code, d, dd, e, 1, 3, 0, 2)
    value, code = mixed(value, code, d, dd, e, 2, 3, 0, 1)
    whole, bits = halves(e[0], e[1], e[2], e[3])
    return tl.where(whole > value, bits * 0x0011 | (15 - bits) * 0x1100, code)


@triton.jit
def best_of_one(d, dd, e):
    """The best mask of 1:4."""
    value = tl.zeros(d[0].shape, tl.int32) - 2147483647
    code = tl.zeros(d[0].shape, tl.int32)
    value, code = apart(value, code, d, dd, e, 0, 1, 2, 3)
    value, code = apart(value, code, d, dd, e, 0, 2, 1, 3)
    value, code = apart(value, code, d, dd, e, 0, 3, 1, 2)
    value, code = apart(value, code, d, dd, e, 1, 2, 0, 3)
    value, code = apart(value, code, d, dd, e, 1, 3, 0, 2)
    value, code = apart(value, code, d, dd, e, 2, 3, 0, 1)
    return code


@triton.jit
def prices(q, has):
    """Prices of the columns for which every row holds its best q - v, [T, 4].

    Moving an entry of a row from column a to b loses q_a - q_b. The shortest distances by such
    moves exist, as the mask is optimal, and v_a - v_b is no more than any loss; three rounds of
    Bellman and Ford find them.
    """
    row = tl.arange(0, 4)[None, :, None]
    loss = tl.zeros(q.shape, tl.int32) + FAR
    for i in tl.static_range(4):
        x = tl.sum(tl.where(row == i, q, 0), 1)
        kept = tl.sum(tl.where((row == i) & has, 1, 0), 1) > 0
        moves = kept[:, :, None] & ~kept[:, None, :]
        loss = tl.minimum(loss, tl.where(moves, x[:, :, None] - x[:, None, :], FAR))
    distance = tl.minimum(tl.min(loss, 1), 0)
    for _ in tl.static_range(2):
        distance = tl.minimum(distance, tl.min(distance[:, :, None] + loss, 1))
    return -distance


@triton.jit(do_not_specialize=SIZES)
def four(
    scores_ptr,
    kept_ptr,
    u_ptr,
    v_ptr,
    wide_ptr,
    counters_ptr,
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
    N: tl.constexpr,
    T: tl.constexpr,
    KIND: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    PRICES: tl.constexpr,
):
    """The best of all masks of T tiles; lists those for the wide paths."""
    tile = tl.program_id(0) * T + tl.arange(0, T)
    batch, top, left, height, width = place(tile, count, rows, cols, down, across, 4)
    full = (height == 4) & (width == 4)
    offsets = block_offsets(batch, top, left, batch_stride, row_stride, col_stride, 4)
    raw = tl.load(scores_ptr + offsets, mask=full[:, None, None], other=0)
    q, exponent, lost, infinite, nan = quantise(float_bits(raw, KIND), MAGNITUDE, False)
    x0, x1, x2, x3 = lines(tl.trans(-q if N == 3 else q, (0, 2, 1)))
    d = lines(x0 - x1)
    dd = lines(x2 - x3)
    e = lines((x0 + x1) - (x2 + x3))
    code = best_of_two(d, dd, e) if N == 2 else best_of_one(d, dd, e)
    if N == 3:
        code = 0xFFFF - code
    line = tl.arange(0, 4)
    number = line[None, :, None] * 4 + line[None, None, :]
    has = ((code[:, None, None] >> number) & 1) != 0
    # As for the narrow paths: rounding may cost 5e-7 of what is kept.
    weight = tl.sum(tl.sum(tl.where(has, tl.abs(q) >> 6, 0), 2), 1)
    coarse = lost & (weight < 15625 * 16)
    usable = full & ~nan & ~infinite & ~coarse
    kept_offsets = block_offsets(batch, top, left, kept_batch, kept_row, kept_col, 4)
    tl.store(kept_ptr + kept_offsets, has.to(tl.int8), mask=usable[:, None, None])
    if PRICES:
        v = prices(q, has)
        u = tl.max(tl.where(has, -FAR, q - v[:, None, :]), 2)
        scale = unit(exponent, 2)[:, None]
        lines_at = tile.to(tl.int64)[:, None] * 4 + line[None, :]
        tl.store(u_ptr + lines_at, u.to(tl.float64) * scale, mask=usable[:, None])
        tl.store(v_ptr + lines_at, v.to(tl.float64) * scale, mask=usable[:, None])
    append(wide_ptr, counters_ptr + WIDE_TODO, tile, (tile < count) & ~usable)
