"""Repair and local search of masks on a GPU; see ``naive.py`` for what is computed.

A row of a mask is an int32, one bit for each column. The native search visits the pairs of rows
(i, k) one after the other: (0, 1), (0, 2) and so on. What a pair does depends on what its two rows
hold, and so on the pairs before it that have a row in common with it: all of these have a smaller
i + k, and all such pairs behind it a larger one. So the pairs of one sum, which share no row, are
visited side by side, the sums in turn, and the mask is that of the native search.
"""

from __future__ import annotations

import triton
import triton.language as tl

from transposable.kernels.fixed_point import (
    INFINITY,
    block_offsets,
    float_bits,
    inside,
    is_nan,
    most,
    place,
)

SIZES = ("count", "rows", "cols", "down", "across", "n", "sweeps")
NOWHERE = tl.constexpr(1 << 20)
ENDLESS = tl.constexpr(float("inf"))


@triton.jit
def values(bits, MAGNITUDE: tl.constexpr):
    """Scores as float32 [T, M, M] whose largest finite magnitude in a tile is in [0.5, 1).

    Infinities become +-2^14. The product is exact in float64, so that it is rounded once.
    """
    size = bits & 0x7FFFFFFF
    finite = tl.where(size >= INFINITY, 0, size)
    largest = most(finite).to(tl.float32, bitcast=True).to(tl.float64)
    exponent = (largest.to(tl.int64, bitcast=True) >> 52) - 1022
    exponent = tl.where(largest == 0, 0, exponent)
    scale = ((1023 - exponent) << 52).to(tl.float64, bitcast=True)
    scaled = finite.to(tl.float32, bitcast=True).to(tl.float64) * scale[:, None, None]
    value = tl.where(size == INFINITY, 16384.0, scaled.to(tl.float32))
    return value if MAGNITUDE else tl.where(bits < 0, -value, value)


@triton.jit
def columns_of(chosen):
    """The chosen columns of every row as bits: [T, M, M] to int32 [T, M]."""
    M: tl.constexpr = chosen.shape[2]
    bit = tl.full((1, 1, M), 1, tl.int32) << tl.arange(0, M)[None, None, :]
    return tl.sum(tl.where(chosen, bit, 0), 2)


@triton.jit
def entries_of(kept):
    """The inverse of :func:`columns_of`."""
    M: tl.constexpr = kept.shape[1]
    bit = tl.full((1, 1, M), 1, tl.int32) << tl.arange(0, M)[None, None, :]
    return (kept[:, :, None] & bit) != 0


@triton.jit
def complete(value, kept, n, repaired):
    """Exchange one kept entry for two others until all rows of the tiles to be repaired hold n.

    The tiles have no room: a row with less than n keeps all columns with less than n. The best
    exchange for the first such row is made, ties to the first column l, row k and column j.
    """
    M: tl.constexpr = value.shape[1]
    line = tl.arange(0, M)[None, :]
    bit = tl.full((1, M), 1, tl.int32) << line
    number = tl.arange(0, M)[None, :, None] * M + tl.arange(0, M)[None, None, :]
    has = entries_of(kept)
    in_row = tl.sum(has.to(tl.int32), 2)
    in_col = tl.sum(has.to(tl.int32), 1)
    i = tl.min(tl.where((in_row < n) & repaired[:, None], line, NOWHERE), 1)
    while tl.min(i, 0) < NOWHERE:
        in_i = line == i[:, None]
        row = tl.sum(tl.where(in_i[:, :, None], value, 0.0), 1)
        row_kept = tl.sum(tl.where(in_i, kept, 0), 1)[:, None]
        best = -tl.full(i.shape, ENDLESS, tl.float32)
        best_goal = i - i + NOWHERE
        dropped = i - i
        goal = tl.min(tl.where((in_col < n) & (i < NOWHERE)[:, None], line, NOWHERE), 1)
        while tl.min(goal, 0) < NOWHERE:
            in_goal = line == goal[:, None]
            col = tl.sum(tl.where(in_goal[:, None, :], value, 0.0), 2)
            col_bit = tl.sum(tl.where(in_goal, bit, 0), 1)[:, None]
            can = has & ((row_kept & bit) == 0)[:, None, :] & ((kept & col_bit) == 0)[:, :, None]
            can = can & (goal < NOWHERE)[:, None, None]
            gain = tl.where(can, col[:, :, None] + row[:, None, :] - value, -ENDLESS)
            top = most(gain)
            code = -most(-tl.where(can & (gain == top[:, None, None]), number, NOWHERE))
            better = top > best
            best = tl.where(better, top, best)
            best_goal = tl.where(better, goal, best_goal)
            dropped = tl.where(better, code, dropped)
            goal = tl.min(tl.where((in_col < n) & (line > goal[:, None]), line, NOWHERE), 1)
        found = best_goal < NOWHERE
        in_goal = (line == best_goal[:, None]) & found[:, None]
        in_i = in_i & found[:, None]
        in_k = (line == (dropped // M)[:, None]) & found[:, None]
        add = tl.sum(tl.where(in_goal, bit, 0), 1)[:, None]
        drop = tl.sum(tl.where(line == (dropped % M)[:, None], bit, 0), 1)[:, None]
        kept = tl.where(in_k, kept ^ (drop | add), tl.where(in_i, kept | drop, kept))
        in_row += in_i.to(tl.int32)
        in_col += in_goal.to(tl.int32)
        has = entries_of(kept)
        # Without an exchange, which a tile with room may lack, the tile is given up.
        repaired = repaired & (found | (i == NOWHERE))
        i = tl.min(tl.where((in_row < n) & repaired[:, None], line, NOWHERE), 1)
    return kept


@triton.jit
def exchange(value, kept, sweeps):
    """Sweeps over all pairs of rows, until one that changes nothing."""
    M: tl.constexpr = value.shape[1]
    line = tl.arange(0, M)[None, :]
    done = 0
    going = 1
    while (going > 0) & (done < sweeps):
        before = kept
        for total in range(1, 2 * M - 2):
            other = total - line
            paired = (other >= 0) & (other < M) & (other != line)
            other = tl.where(paired, other, line) + tl.zeros(kept.shape, tl.int32)
            at = tl.broadcast_to(other[:, :, None], value.shape)
            theirs = tl.gather(value, at, 1)
            their_kept = tl.gather(kept, other, 1)
            # Both rows of a pair find the same: what the upper one gives and takes.
            upper = line < other
            difference = tl.where(upper[:, :, None], value - theirs, theirs - value)
            only = kept & ~their_kept
            theirs_only = their_kept & ~kept
            gives = entries_of(tl.where(upper, only, theirs_only))
            takes = entries_of(tl.where(upper, theirs_only, only))
            low = tl.min(tl.where(gives, difference, ENDLESS), 2)
            high = tl.max(tl.where(takes, difference, -ENDLESS), 2)
            give = columns_of(gives & (difference == low[:, :, None]))
            take = columns_of(takes & (difference == high[:, :, None]))
            # The first column is the lowest bit.
            kept = tl.where(high > low, kept ^ ((give & -give) | (take & -take)), kept)
        going = tl.max(tl.max((kept != before).to(tl.int32), 1), 0)
        done += 1
    return kept


@triton.jit
def polish(value, kept, n, sweeps, cropped):
    """Add, move and drop single entries of the cropped tiles, where counts may vary.

    A sweep visits the entries in row-major order, those of a row that are pruned when its turn
    comes. One that gains is kept if its row and its column have room. If one of the two is full,
    it takes the place of the least entry of that line, if that is less.
    """
    M: tl.constexpr = value.shape[1]
    line = tl.arange(0, M)[None, :]
    bit = tl.full((1, M), 1, tl.int32) << line
    row_at = tl.arange(0, M)[None, :, None]
    number = row_at * M + tl.arange(0, M)[None, None, :]
    kept = tl.where(cropped[:, None], kept & ~columns_of(value < 0), kept)
    done = 0
    going = tl.max(cropped.to(tl.int32), 0)
    while (going > 0) & (done < sweeps):
        before = kept
        last = tl.zeros(cropped.shape, tl.int32) - M  # the entry that was kept last
        then = tl.zeros(cropped.shape, tl.int32)  # what its row held when the row's turn came
        moving = 1
        while moving > 0:
            has = entries_of(kept)
            row_room = tl.sum(has.to(tl.int32), 2) < n
            col_room = tl.sum(has.to(tl.int32), 1) < n
            by_row = tl.min(tl.where(has, value, ENDLESS), 2)
            by_col = tl.min(tl.where(has, value, ENDLESS), 1)
            either = row_room[:, :, None] | col_room[:, None, :]
            worth = row_room[:, :, None] | (by_row[:, :, None] < value)
            worth = worth & (col_room[:, None, :] | (by_col[:, None, :] < value))
            last_row = (last // M)[:, None]
            visited = entries_of(tl.where(line == last_row, then[:, None], 0))
            coming = ~has & ~visited & (number > last[:, None, None]) & cropped[:, None, None]
            acts = coming & either & worth & (value > 0)
            at = -most(-tl.where(acts, number, NOWHERE))
            found = (at < NOWHERE)[:, None]
            in_i = (line == (at // M)[:, None]) & found
            in_l = (line == (at % M)[:, None]) & found
            new = tl.sum(tl.where(in_l, bit, 0), 1)[:, None]
            here = tl.sum(tl.where(in_i, kept, 0), 1)
            then = tl.where((at < NOWHERE) & (at // M != last // M), here, then)
            least = columns_of(has & (value == by_row[:, :, None]))
            out = tl.where(in_i & ~row_room, least & -least, 0)
            top = tl.min(tl.where(has & (value == by_col[:, None, :]), row_at, NOWHERE), 1)
            gives = tl.min(tl.where(in_l & ~col_room, top, NOWHERE), 1)[:, None]
            kept = tl.where(line == gives, kept & ~new, kept)
            kept = tl.where(in_i, (kept & ~out) | new, kept)
            last = tl.where(at < NOWHERE, at, last)
            moving = tl.max((at < NOWHERE).to(tl.int32), 0)
        going = tl.max(tl.max((kept != before).to(tl.int32), 1), 0)
        done += 1
    return kept


@triton.jit(do_not_specialize=SIZES)
def search(
    scores_ptr,
    kept_ptr,
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
    sweeps,
    M: tl.constexpr,
    T: tl.constexpr,
    KIND: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    REPAIR: tl.constexpr,
    SWEEP: tl.constexpr,
):
    """T tiles: repair, and ``sweeps`` sweeps; what is left out is not compiled."""
    tile = tl.program_id(0) * T + tl.arange(0, T)
    batch, top, left, height, width = place(tile, count, rows, cols, down, across, M)
    real = inside(height, width, M)
    full = (height == M) & (width == M)
    offsets = block_offsets(batch, top, left, batch_stride, row_stride, col_stride, M)
    bits = float_bits(tl.load(scores_ptr + offsets, mask=real, other=0), KIND)
    usable = most(is_nan(bits).to(tl.int32)) == 0
    kept_at = kept_ptr + block_offsets(batch, top, left, kept_batch, kept_row, kept_col, M)
    has = tl.load(kept_at, mask=real, other=0) != 0
    kept = columns_of(has)
    value = values(bits, MAGNITUDE)
    if REPAIR:
        kept = complete(value, kept, n, full & usable)
    if SWEEP:
        kept = exchange(value, kept, sweeps)
        kept = polish(value, kept, n, sweeps, ~full & usable)
    # The mask of a tile with a NaN is what the walk has made it.
    stored = real & usable[:, None, None]
    tl.store(kept_at, entries_of(kept).to(tl.int8), mask=stored)
