"""Exact masks on a GPU: dual rounds for all tiles, shortest paths for those left.

Three launches, none of which waits for the host:

1. ``wave``: 26-bit scores; prices of rows and columns in turn; tiles whose rows keep what lies
   above their price, and whose columns then hold N, are proved. The others are listed.
2. ``paths``, narrow: the listed tiles, by successive shortest paths from those prices.
3. ``paths``, wide: tiles that 26 bits cannot tell, with infinities or cropped, in 50 bits.

Blocks are [M rows, T tiles, M columns]; see ``naive.py`` for what is computed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from transposable.kernels.fixed_point import (
    block_offsets,
    float_bits,
    inside,
    most,
    place,
    quantise,
    unit,
)

BOUND = tl.constexpr(1 << 27)
"""Of the prices of the wave: q - v then fits 32 bits, and so do paths (see ``push``)."""

FAR_NARROW = tl.constexpr(2**31 - 1)
FAR_WIDE = tl.constexpr(2**62)
NOWHERE = tl.constexpr(1 << 20)

SIZES = ("count", "rows", "cols", "down", "across", "n")
"""Arguments of which one compiled kernel serves all values; strides decide on vector loads."""

TODO = tl.constexpr(0)
WIDE_TODO = tl.constexpr(1)
NANS = tl.constexpr(2)


@triton.jit
def middle(x, n, STEPS: tl.constexpr, AXIS: tl.constexpr):
    """About halfway between the n-th and the next largest of the lines of x, reduced over AXIS.

    Bisection; lines that STEPS do not separate get a value between two entries further apart. The
    upper half of an odd distance: the n-th itself is never below.
    """
    low = tl.min(x, AXIS)
    high = tl.max(x, AXIS) + 1
    for _ in range(STEPS):
        half = low + ((high - low) >> 1)
        count = tl.sum((x >= tl.expand_dims(half, AXIS)).to(tl.int32), AXIS)
        low = tl.where(count >= n, half, low)
        high = tl.where(count <= n, half, high)
    least = tl.min(tl.where(x >= tl.expand_dims(low, AXIS), x, 1 << 30), AXIS)
    below = tl.max(tl.where(x < tl.expand_dims(high, AXIS), x, -(1 << 30)), AXIS)
    return (least + below + 1) >> 1


@triton.jit
def append(list_ptr, counter_ptr, tile, chosen):
    """Put the chosen tiles on a list; returns their slots [T]."""
    flags = chosen.to(tl.int32)
    total = tl.sum(flags, 0)
    slot = tl.cumsum(flags, 0) - flags
    if total > 0:
        slot += tl.atomic_add(counter_ptr, total)
        tl.store(list_ptr + slot, tile, mask=chosen)
    return slot


@triton.jit(do_not_specialize=SIZES)
def wave(
    scores_ptr,
    kept_ptr,
    u_ptr,
    v_ptr,
    todo_ptr,
    wide_ptr,
    warm_ptr,
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
    n,
    M: tl.constexpr,
    T: tl.constexpr,
    KIND: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    PRICES: tl.constexpr,
    ROUNDS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Dual rounds for T tiles; writes the masks of those proved, and lists the others."""
    tile = tl.program_id(0) * T + tl.arange(0, T)
    batch, top, left, height, width = place(tile, count, rows, cols, down, across, M)
    full = (height == M) & (width == M)
    offsets = block_offsets(batch, top, left, batch_stride, row_stride, col_stride, M)
    raw = tl.load(scores_ptr + offsets, mask=full[:, None, None], other=0)
    q, exponent, _, infinite, nan = quantise(float_bits(raw, KIND), MAGNITUDE, False)

    v = tl.zeros((T, M), tl.int32)
    for _ in range(ROUNDS):
        u = middle(q - v[:, None, :], n, STEPS, 2)
        step = middle(q - u[:, :, None], n, STEPS, 1) - v
        v += step + (step >> 2) + (step >> 3)
        v = tl.minimum(tl.maximum(v, -BOUND), BOUND)
    u = middle(q - v[:, None, :], n, STEPS, 2)
    kept = q - v[:, None, :] >= u[:, :, None]
    wrong_rows = tl.max((tl.sum(kept.to(tl.int32), 2) != n).to(tl.int32), 1)
    wrong_cols = tl.max((tl.sum(kept.to(tl.int32), 1) != n).to(tl.int32), 1)
    usable = full & ~nan & ~infinite
    proved = usable & (wrong_rows == 0) & (wrong_cols == 0)

    kept_offsets = block_offsets(batch, top, left, kept_batch, kept_row, kept_col, M)
    tl.store(kept_ptr + kept_offsets, kept.to(tl.int8), mask=proved[:, None, None])
    line = tl.arange(0, M)[None, :]
    if PRICES:
        # Rounding is monotone: halfway between two integers the price separates true scores too.
        lines_at = tile.to(tl.int64)[:, None] * M + line
        scale = unit(exponent, 2)[:, None]
        tl.store(u_ptr + lines_at, (u.to(tl.float64) - 0.5) * scale, mask=proved[:, None])
        tl.store(v_ptr + lines_at, v.to(tl.float64) * scale, mask=proved[:, None])
    todo = usable & ~proved
    slot = append(todo_ptr, counters_ptr + TODO, tile, todo)
    tl.store(warm_ptr + slot.to(tl.int64)[:, None] * M + line, v, mask=todo[:, None])
    append(wide_ptr, counters_ptr + WIDE_TODO, tile, (tile < count) & ~usable)


@triton.jit
def choose(x, n, full, real, CROPPED: tl.constexpr):
    """Every row takes its n best x, the rows of a cropped tile only positive ones.

    Ties are settled last, rows in order, in favour of the columns that hold the least, so that
    equal rows need no path at all. In a cropped tile a tie with nothing, x = 0, is taken where
    there is room.

    Returns:
        kept: bit j of kept[t, i], int32 [T, M].  held: entries of each column, [T, M].
    """
    M: tl.constexpr = x.shape[1]
    line = tl.arange(0, M)[None, :]
    bit = tl.full((1, M), 1, tl.int32) << line
    low = tl.min(x, 2)
    if CROPPED:
        low = tl.where(full[:, None], low, 0)
        x = tl.where(real, x, -1)
    high = tl.maximum(tl.max(x, 2), low) + 1
    while tl.max(tl.max(high - low, 1), 0) > 1:
        half = low + ((high - low) >> 1)
        apart = high - low > 1
        count = tl.sum((x >= half[:, :, None]).to(tl.int32), 2)
        low = tl.where(apart & (count >= n), half, low)
        high = tl.where(apart & (count < n), half, high)
        high = tl.where(apart & (count == n), half + 1, high)
    count = tl.sum((x >= low[:, :, None]).to(tl.int32), 2)
    settled = count == n
    if CROPPED:
        settled = settled & (full[:, None] | (low > 0))
    least = low + tl.where(settled, 0, 1)  # of what is taken without a tie
    above = x >= least[:, :, None]
    equal = (x == low[:, :, None]) & (x < least[:, :, None])
    if CROPPED:
        above = above & real
        equal = equal & real
    kept = tl.sum(tl.where(above, bit[:, None, :], 0), 2)
    tied = tl.sum(tl.where(equal, bit[:, None, :], 0), 2)
    held = tl.sum(above.to(tl.int32), 1)
    missing = tl.where(tied != 0, n - tl.sum(above.to(tl.int32), 2), 0)
    if tl.max(tl.max(missing, 1), 0) > 0:
        for i in range(M):
            here = line == i
            ties = tl.sum(tl.where(here, tied, 0), 1)[:, None]
            wanted = tl.sum(tl.where(here, missing, 0), 1)[:, None]
            can = (ties & bit) != 0
            if CROPPED:
                spare = tl.sum(tl.where(here, low, 0), 1)[:, None] == 0
                can = can & (full[:, None] | ~spare | (held < n))
            turn = tl.where(line < i, line - i + M, line - i)
            key = tl.where(can, held * M + turn, NOWHERE)
            rank = tl.sum((key[:, :, None] < key[:, None, :]).to(tl.int32), 1)
            take = can & (rank < wanted)
            held += take.to(tl.int32)
            more = tl.sum(tl.where(take, bit, 0), 1)[:, None]
            kept = tl.where(here, kept | more, kept)
    return kept, held


@triton.jit
def push(q, v, kept, held, n, full, real, FAR: tl.constexpr, CROPPED: tl.constexpr):
    """Move entries from over-full columns to others along shortest paths until none is over-full.

    Moving an entry of row i from column a to b costs x_ia - x_ib with x = q - v, which is never
    negative, as rows hold their best. Distances of all columns come from Bellman-Ford, by way of
    the rows: R_i = min over kept a of d_a + x_ia, d_b = min over i of R_i - x_ib. In a cropped tile
    an entry may also be dropped, at x_ia - 0.

    A column that holds more than another is held by a row that does not hold the other, so that a
    direct move exists, and prices rise to at most 2 max|q| above the highest at the start: with
    |q| < 2^26 and |v| <= 2^27 then x < 5 * 2^26 and distances < 2^29 fit 32 bits.
    """
    M: tl.constexpr = q.shape[1]
    line = tl.arange(0, M)[None, :]
    bit = tl.full((1, M), 1, tl.int32) << line
    number = tl.arange(0, M)[None, :, None] * M + tl.arange(0, M)[None, None, :]
    while tl.max(tl.max(held, 1), 0) > n:
        over = held > n
        x = q - v[:, None, :]
        has = (kept[:, :, None] & bit[:, None, :]) != 0
        free = ~has
        if CROPPED:
            free = free & real
        distance = tl.where(over, 0, FAR).to(q.dtype)
        found = tl.where(over, 0, NOWHERE)  # in which round the distance was found
        turn = 0
        going = 1
        while going > 0:
            turn += 1
            by_row = nearest(x, has, distance, FAR)
            move = tl.where(free & (by_row < FAR)[:, :, None], by_row[:, :, None] - x, FAR)
            nearer = tl.min(move, 1)
            better = nearer < distance
            distance = tl.where(better, nearer, distance)
            found = tl.where(better, turn, found)
            going = tl.max(tl.max(better.to(tl.int32), 1), 0)
        active = tl.max(over.to(tl.int32), 1) > 0
        room = held < n
        reached = tl.min(tl.where(room, distance, FAR), 1)
        target = tl.min(tl.where(room & (distance == reached[:, None]), line, NOWHERE), 1)
        at = (line == target[:, None]) & active[:, None]
        drops = active & ~active
        if CROPPED:
            dropped = tl.min(nearest(x, has, distance, FAR), 1)
            drops = active & ~full & (dropped < reached)
            reached = tl.where(drops, dropped, reached)
            at = at & ~drops[:, None]
        held += at.to(tl.int32)
        # Back along the path: rounds of discovery decrease, so that ties make no circle.
        moved = kept
        last = tl.where(drops[:, None] & (distance < FAR), found + 1, tl.where(at, found, 0))
        for hop in range(tl.max(tl.max(last, 1), 0)):
            first = drops & (hop == 0)  # from no column
            there = tl.sum(tl.where(at[:, None, :], x, 0), 2)
            length = tl.where(first, reached, tl.sum(tl.where(at, distance, 0), 1))
            before = tl.where(first, NOWHERE, tl.sum(tl.where(at, found, 0), 1))
            into = tl.sum(tl.where(at, bit, 0), 1)[:, None]
            known = has & (found < before[:, None])[:, None, :]
            known = known & ((kept & into) == 0)[:, :, None]
            tight = known & (distance[:, None, :] + x == (there + length[:, None])[:, :, None])
            code = -most(-tl.where(tight, number, NOWHERE))
            # A tile whose path has ended finds nothing: no round is below 0.
            moving = code < NOWHERE
            from_ = line == (code % M)[:, None]
            out = tl.sum(tl.where(from_, bit, 0), 1)[:, None]
            gives = (line == (code // M)[:, None]) & moving[:, None]
            moved = tl.where(gives, (moved & ~out) | into, moved)
            at = tl.where(moving[:, None], from_, at)
        kept = moved
        held -= at.to(tl.int32)
        rise = (distance < reached[:, None]) & active[:, None]
        v += tl.where(rise, reached[:, None] - distance, 0)
    return v, kept


@triton.jit
def nearest(x, has, distance, FAR: tl.constexpr):
    """R_i of :func:`push`, [T, M]."""
    known = has & (distance < FAR)[:, None, :]
    return tl.min(tl.where(known, distance[:, None, :] + x, FAR), 2)


@triton.jit(do_not_specialize=SIZES)
def paths(
    scores_ptr,
    kept_ptr,
    u_ptr,
    v_ptr,
    list_ptr,
    wide_ptr,
    warm_ptr,
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
    n,
    M: tl.constexpr,
    T: tl.constexpr,
    KIND: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    PRICES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Solve the listed tiles, T at a time; narrow ones go on the wide list if 26 bits were too few.

    A tile with a NaN keeps nothing and is counted.
    """
    FAR: tl.constexpr = FAR_WIDE if WIDE else FAR_NARROW
    listed = tl.load(counters_ptr + (WIDE_TODO if WIDE else TODO))
    line = tl.arange(0, M)[None, :]
    bit = tl.full((1, M), 1, tl.int32) << line
    for first in range(tl.program_id(0) * T, listed, tl.num_programs(0) * T):
        slot = first + tl.arange(0, T)
        valid = slot < listed
        tile = tl.load(list_ptr + slot, mask=valid, other=count)
        batch, top, left, height, width = place(tile, count, rows, cols, down, across, M)
        real = inside(height, width, M)
        full = (height == M) & (width == M)
        offsets = block_offsets(batch, top, left, batch_stride, row_stride, col_stride, M)
        raw = tl.load(scores_ptr + offsets, mask=real, other=0)
        q, exponent, lost, infinite, nan = quantise(float_bits(raw, KIND), MAGNITUDE, WIDE)
        if WIDE:
            v = tl.zeros((T, M), tl.int64)
            spare = tl.where(infinite, 12, 26)
        else:
            warm_at = slot.to(tl.int64)[:, None] * M + line
            v = tl.load(warm_ptr + warm_at, mask=valid[:, None], other=0)
            spare = tl.full((T,), 2, tl.int32)
        kept, held = choose(q - v[:, None, :], n, full, real, WIDE)
        v, kept = push(q, v, kept, held, n, full, real, FAR, WIDE)

        has = (kept[:, :, None] & bit[:, None, :]) != 0
        kept_offsets = block_offsets(batch, top, left, kept_batch, kept_row, kept_col, M)
        stored = has & ~nan[:, None, None]
        tl.store(kept_ptr + kept_offsets, stored.to(tl.int8), mask=real)
        if PRICES:
            # Any price between the least kept and the greatest pruned score of a row will do.
            u = tl.max(tl.where(real & ~has, q - v[:, None, :], -FAR), 2)
            if WIDE:
                u = tl.where(full[:, None], u, tl.maximum(u, 0))
            scale = unit(exponent, spare)[:, None]
            lines_at = tile.to(tl.int64)[:, None] * M + line
            tl.store(u_ptr + lines_at, u.to(tl.float64) * scale, mask=line < height[:, None])
            tl.store(v_ptr + lines_at, v.to(tl.float64) * scale, mask=line < width[:, None])
        if WIDE:
            flagged = tl.sum((nan & valid).to(tl.int32), 0)
            if flagged > 0:
                tl.atomic_add(counters_ptr + NANS, flagged)
        else:
            # Rounding costs at most half a unit for each entry, and may cost 5e-7 of what is kept.
            weight = tl.sum(tl.sum(tl.where(has, tl.abs(q) >> 6, 0), 2), 1)
            coarse = lost & (weight < 15625 * M * M)
            append(wide_ptr, counters_ptr + WIDE_TODO, tile, valid & coarse)
