"""The native sparse functions in plain torch: slow, short, and what the fast ones are tested with.

Same names, same arguments, same results up to rounding as in ``transposable._core``. The format is
described in docs/sparse.md.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
import torch

LONGEST_RUN: Final = 65535
"""Columns that one run can hold: its length is a 16-bit number."""

BYTE_COLUMNS: Final = 256
"""Columns of a block of 4 rows are bytes, two to an entry, if there are at most so many."""

FEWEST_TOGETHER: Final = 4
"""Fewer pairs or fours of columns have no run of their own."""

GRADIENT_ROWS: Final = 8
"""Rows that the weight gradient takes at a time ..."""

FEW_GRADIENT_ROWS: Final = 4
"""... and if less than three columns of a slab were of one type, in streams of lower blocks."""

WIDE_SLAB: Final = 256
"""Columns that it takes at a time, if three or more of the rows keep a column on average ..."""

NARROW_SLAB: Final = 128
"""... and if fewer do."""

TOGETHER: Final = {15 + kind: (kind, 15 - kind) for kind in range(1, 8)} | {23: (1, 2, 4, 8)}
"""Types of the columns that a run of a block of 4 rows takes together, by its type."""


def types_of_run(row_block: int, kind: int) -> tuple[int, ...]:
    """The types of the columns that a run takes together: itself, or those of a pair or four.

    Example:
        >>> types_of_run(8, 17), types_of_run(4, 17), types_of_run(4, 7)
        ((17,), (2, 13), (7,))
    """
    return TOGETHER.get(kind, (kind,)) if row_block == 4 else (kind,)


def sparse_blocking(n: int, m: int) -> tuple[int, int]:
    """The height and width of blocks that suit a pattern: many types ask for lower ones.

    That of AVX-512; narrower instruction sets have registers for 4 rows only, of 256 columns.

    Example:
        >>> sparse_blocking(2, 4), sparse_blocking(8, 16)
        ((8, 2048), (4, 128))
    """
    return (4, 128) if m >= 16 else (8, 2048)


def sparse_index(
    mask: torch.Tensor, row_block: int, col_block: int, threads: int = 1
) -> tuple[Any, Any]:
    """The index of a mask, uint16, and where each block starts, int64 [2, blocks + 1].

    Example:
        >>> index, starts = sparse_index(torch.eye(2, 3, dtype=torch.bool), 4, 8)
        >>> index.tolist(), starts.tolist()
        ([1, 1, 0, 2, 1, 1, 0, 0], [[0, 8], [0, 2]])
    """
    rows, cols = mask.shape
    index: list[int] = []
    starts = [[0], [0]]
    kept = 0
    for left in range(0, cols, col_block):
        for top in range(0, rows, row_block):
            block = mask[top : top + row_block, left : left + col_block].long()
            types = (block << torch.arange(block.shape[0])[:, None]).sum(0)
            # By type, the columns that are in no run yet; those together are the last ones.
            columns = {
                kind: (types == kind).nonzero().flatten().tolist()
                for kind in sorted(set(types.tolist()) - {0})
            }
            together = _counts_together(columns) if row_block == 4 else {}
            for kind, found in columns.items():
                alone = len(found) - sum(n for run, n in together.items() if kind in TOGETHER[run])
                for at in range(0, alone, LONGEST_RUN):
                    part = found[at : min(at + LONGEST_RUN, alone)]
                    index += [kind, len(part), *_entries(part, row_block, col_block)]
                del found[:alone]
            for kind, count in together.items():
                index += [kind, count]
                for each in TOGETHER[kind]:
                    index += _entries(columns[each][:count], row_block, col_block)
                    del columns[each][:count]
            kept += int(block.sum())
            index += [0, 0]
            starts[0].append(len(index))
            starts[1].append(kept)
    return np.array(index, dtype=np.uint16), np.array(starts, dtype=np.int64)


def has_byte_columns(row_block: int, col_block: int) -> bool:
    """Whether an entry of the index holds two columns.

    Example:
        >>> has_byte_columns(4, 256), has_byte_columns(4, 512), has_byte_columns(8, 16)
        (True, False, False)
    """
    return row_block == 4 and col_block <= BYTE_COLUMNS


def _entries(columns: list[int], row_block: int, col_block: int) -> list[int]:
    if not has_byte_columns(row_block, col_block):
        return columns
    filled = [*columns, 0] if len(columns) % 2 else columns
    return [low | high << 8 for low, high in zip(filled[::2], filled[1::2], strict=True)]


def _counts_together(columns: dict[int, list[int]]) -> dict[int, int]:
    """How many pairs there are by type of their run, and then how many fours of what is left."""
    left = {kind: len(found) for kind, found in columns.items()}
    counts = {}
    for run, types in TOGETHER.items():
        count = min(left.get(kind, 0) for kind in types)
        if count >= FEWEST_TOGETHER:
            counts[run] = count
            left |= {kind: left[kind] - count for kind in types}
    return counts


def positions(
    index: torch.Tensor,
    starts: torch.Tensor,
    rows: int,
    cols: int,
    row_block: int,
    col_block: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each value, in the order of the values, int64.

    Example:
        >>> index, starts = sparse_index(torch.eye(2, 3, dtype=torch.bool), 4, 8)
        >>> positions(torch.from_numpy(index), torch.from_numpy(starts), 2, 3, 4, 8)
        (tensor([0, 1]), tensor([0, 1]))
    """
    stream = index.numpy().astype(np.int64)
    row_blocks = -(-rows // row_block)
    found_rows, found_cols = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for block, start in enumerate(starts[0, :-1].tolist()):
        left, top = block // row_blocks * col_block, block % row_blocks * row_block
        at = start
        while stream[at]:
            types, count = types_of_run(row_block, int(stream[at])), int(stream[at + 1])
            at += 2
            for kind in types:
                members = [top + row for row in range(row_block) if kind >> row & 1]
                columns = stream[at : at + count]
                if has_byte_columns(row_block, col_block):
                    columns = stream[at : at + -(-count // 2)]
                    at += len(columns)
                    columns = np.stack([columns & 255, columns >> 8], axis=1).flatten()[:count]
                else:
                    at += count
                found_rows.append(np.tile(members, count))
                found_cols.append(np.repeat(columns + left, len(members)))
    return torch.from_numpy(np.concatenate(found_rows)), torch.from_numpy(
        np.concatenate(found_cols)
    )


def sparse_fill(
    index: torch.Tensor,
    starts: torch.Tensor,
    rows: int,
    cols: int,
    row_block: int,
    col_block: int,
    weight: torch.Tensor,
    values: torch.Tensor,
    threads: int,
) -> None:
    """values[p] = the weight at the position of value p, rounded to the dtype of the values."""
    at = positions(index, starts, rows, cols, row_block, col_block)
    values.copy_(weight[at])


def sparse_scatter(
    index: torch.Tensor,
    starts: torch.Tensor,
    rows: int,
    cols: int,
    row_block: int,
    col_block: int,
    values: torch.Tensor,
    out: torch.Tensor,
    threads: int,
) -> None:
    """out = value p at the position of value p; what is not kept stays as it is."""
    out[positions(index, starts, rows, cols, row_block, col_block)] = values.to(out.dtype)


def sparse_matmul(
    index: torch.Tensor,
    starts: torch.Tensor,
    rows: int,
    cols: int,
    row_block: int,
    col_block: int,
    values: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    threads: int,
) -> None:
    """out[t, r] = sum_c A[r, c] x[t, c] + bias[r], accumulated in float32.

    As in the native function, a column that a row does not keep is not multiplied: an infinity in x
    there does not become a NaN.
    """
    at_rows, at_cols = positions(index, starts, rows, cols, row_block, col_block)
    total = torch.zeros(x.shape[0], rows)
    total.index_add_(1, at_rows, x.float()[:, at_cols] * values.float())
    out.copy_(total if bias is None else total + bias.float())


def sparse_gradient_order(
    index: torch.Tensor,
    starts: torch.Tensor,
    rows: int,
    cols: int,
    row_block: int,
    col_block: int,
    threads: int,
) -> Any:
    """The columns as the weight gradient takes them, uint32 [groups, slabs, slab].

    Example:
        >>> index, starts = map(torch.from_numpy, sparse_index(torch.eye(2, 3) == 1, 4, 8))
        >>> order = sparse_gradient_order(index, starts, 2, 3, 4, 8, 1)
        >>> [(entry >> 16, entry & 65535) for entry in order.flatten().tolist()]
        [(1, 0), (2, 1), (0, 0)]
    """
    kept = torch.zeros(rows, cols, dtype=torch.bool)
    kept[positions(index, starts, rows, cols, row_block, col_block)] = True
    order, alike = _ordered(kept, GRADIENT_ROWS)
    if row_block <= FEW_GRADIENT_ROWS < rows and alike < 3:
        order, _ = _ordered(kept, FEW_GRADIENT_ROWS)
    return order


def _ordered(kept: torch.Tensor, high: int) -> tuple[Any, float]:
    """The order with groups of so many rows, and how many columns of a slab are of one type."""
    rows, cols = kept.shape
    groups = -(-rows // high)
    scarce = int(kept.sum()) < 3 * -(-rows // GRADIENT_ROWS) * cols
    widest = NARROW_SLAB if scarce else WIDE_SLAB
    slab, slabs = min(widest, cols), -(-cols // widest)
    filled = torch.zeros(groups * high, slabs * slab, dtype=torch.int64)
    filled[:rows, :cols] = kept
    bits = 1 << torch.arange(high)[:, None]
    types = (filled.view(groups, high, slabs * slab) * bits).sum(1).view(groups, slabs, slab)
    order = np.zeros(types.shape, dtype=np.uint32)
    columns = kinds = 0
    for group, part in itertools.product(range(groups), range(slabs)):
        line = types[group, part].tolist()
        found = sorted((kind, place) for place, kind in enumerate(line) if kind)
        order[group, part, : len(found)] = [kind << 16 | place for kind, place in found]
        columns += len(found)
        kinds += len({kind for kind, _ in found})
    return order, columns / kinds if kinds else 3.0


def sparse_weight_gradient(
    order: torch.Tensor,
    rows: int,
    cols: int,
    x: torch.Tensor,
    dy: torch.Tensor,
    out: torch.Tensor,
    threads: int,
) -> None:
    """out[r, c] = sum_t dy[t, r] x[t, c] where kept, 0 elsewhere."""
    entries = torch.from_numpy(order.numpy().astype(np.int64))
    group, part, number = entries.nonzero(as_tuple=True)
    found = entries[group, part, number]
    high = GRADIENT_ROWS if len(entries) == -(-rows // GRADIENT_ROWS) else FEW_GRADIENT_ROWS
    out.zero_()
    for row in range(high):
        keeps = found >> 16 + row & 1 == 1
        at_rows = group[keeps] * high + row
        at_cols = part[keeps] * order.shape[2] + (found[keeps] & 65535)
        out[at_rows, at_cols] = (dy.float()[:, at_rows] * x.float()[:, at_cols]).sum(0)


def sparse_conv2d(
    index: torch.Tensor,
    starts: torch.Tensor,
    rows: int,
    cols: int,
    row_block: int,
    col_block: int,
    values: torch.Tensor,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    threads: int,
) -> None:
    """out[n, r, p] = sum over taps k and channels c of A[r, (k, c)] x[n, c, p at k] + bias[r]."""
    where = index, starts, rows, cols, row_block, col_block
    size = out.shape[2], out.shape[3]
    seen = windows(x, size, kernel, stride, padding, dilation)
    found = torch.empty(seen.shape[0], rows)
    sparse_matmul(*where, values, seen, bias, found, threads)
    out.copy_(found.view(out.shape[0], *size, rows).permute(0, 3, 1, 2))


def sparse_conv2d_weight_gradient(
    order: torch.Tensor,
    rows: int,
    cols: int,
    x: torch.Tensor,
    dy: torch.Tensor,
    out: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    threads: int,
) -> None:
    """out[r, (k, c)] = sum over images n and pixels p of dy[n, r, p] x[n, c, p at k] where kept."""
    size = dy.shape[2], dy.shape[3]
    seen = windows(x, size, kernel, stride, padding, dilation)
    pixels = dy.permute(0, 2, 3, 1).reshape(-1, rows)
    sparse_weight_gradient(order, rows, cols, seen, pixels, out, threads)


def windows(
    x: torch.Tensor,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
    """What each output pixel sees, [images * pixels, taps * channels], tap by tap, 0 outside.

    Example:
        >>> x = torch.arange(1.0, 5.0).reshape(1, 1, 2, 2)
        >>> windows(x, (2, 2), (1, 2), (1, 1), (0, 1), (1, 1)).tolist()
        [[0.0, 1.0], [1.0, 2.0], [0.0, 3.0], [3.0, 4.0]]
    """
    batch, channels, height, width = x.shape
    seen = x.new_zeros(batch, *size, kernel[0], kernel[1], channels)
    for row, col, i, j in itertools.product(*(range(n) for n in (*size, *kernel))):
        from_row = row * stride[0] - padding[0] + i * dilation[0]
        from_col = col * stride[1] - padding[1] + j * dilation[1]
        if 0 <= from_row < height and 0 <= from_col < width:
            seen[:, row, col, i, j] = x[:, :, from_row, from_col]
    return seen.view(batch * size[0] * size[1], -1)
