"""Whether the index of a stream is one: native code follows it without looking left or right."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import numpy as np
import torch

from transposable.errors import DeviceError, SparseFormatError

ROW_BLOCKS: Final = (4, 8)
WIDEST_BLOCK: Final = 65536
VALUE_DTYPES: Final = (torch.float32, torch.bfloat16)
_FULL_RUN: Final = 65535
_MEMBERS: Final = np.array([kind.bit_count() for kind in range(2 ** max(ROW_BLOCKS))])
# Types of the runs of blocks of 4 rows that take columns together, which have all four rows.
_LAST_SINGLE: Final = 15
_BYTE_COLUMNS: Final = 256
_FOURS: Final = 23


def check_tensors(
    index: torch.Tensor, starts: torch.Tensor, values: torch.Tensor, rows: int, cols: int
) -> None:
    """Raise if the tensors of a stream have another dtype, device or layout than they must have."""
    wanted: tuple[tuple[str, torch.Tensor, tuple[torch.dtype, ...], int], ...] = (
        ("index", index, (torch.uint16,), 1),
        ("starts", starts, (torch.int64,), 2),
        ("values", values, VALUE_DTYPES, 1),
    )
    for name, tensor, dtypes, dims in wanted:
        if tensor.device.type != "cpu":
            raise DeviceError(
                f"Stream.check: {name} is on {tensor.device}; streams are read by the CPU: move "
                "their tensors there with .cpu()"
            )
        if tensor.dtype not in dtypes or tensor.dim() != dims or not tensor.is_contiguous():
            strided = "" if tensor.is_contiguous() else ", not contiguous"
            _refuse(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}{strided}; the rule is "
                f"a contiguous {' or '.join(map(str, dtypes))} with {dims} dimension"
                f"{'s' if dims > 1 else ''}"
            )
    if rows < 0 or cols < 0:
        _refuse(f"the matrix is {rows} x {cols}; sides are 0 or more")


def check_index(
    index: torch.Tensor,
    starts: torch.Tensor,
    rows: int,
    cols: int,
    row_block: int,
    col_block: int,
    values: torch.Tensor,
) -> None:
    """Raise SparseFormatError unless the index is what some mask [rows, cols] has.

    All blocks are walked side by side, a run of each at a time, so that the time is that of a few
    passes over the index.
    """
    check_tensors(index, starts, values, rows, cols)
    row_blocks, col_blocks = -(-rows // row_block), -(-cols // col_block)
    blocks = row_blocks * col_blocks
    stream, begins = index.numpy(), starts.numpy()
    _check_starts(begins, blocks, len(stream), len(values))
    number = np.arange(blocks)
    # What a block has: columns, fewer in the last of a row; bits for its rows, fewer at the bottom.
    widths = np.minimum(cols - number // max(row_blocks, 1) * col_block, col_block)
    heights = np.minimum(rows - number % max(row_blocks, 1) * row_block, row_block)
    narrow = row_block == 4 and col_block <= _BYTE_COLUMNS  # two columns to an entry
    lists: list[tuple[Any, Any, Any]] = []  # blocks, where columns of one type begin, how many
    at, ends = begins[0, :-1].copy(), begins[0, 1:]
    kept = np.zeros(blocks, dtype=np.int64)
    before = np.zeros(blocks, dtype=np.int64)  # type and length of the run before
    before_count = np.zeros(blocks, dtype=np.int64)
    live = number
    while len(live):
        here = at[live]
        # A terminator has two entries, so a header that has room for both is inside its block.
        _require(here + 2 <= ends[live], live, "has no terminator")
        kind, count = stream[here].astype(np.int64), stream[here + 1].astype(np.int64)
        done = kind == 0
        _require(~done | (count == 0), live, "has a run of type 0 that is no terminator")
        _require(~done | (here + 2 == ends[live]), live, "goes on after its terminator")
        live, here, kind, count = (each[~done] for each in (live, here, kind, count))
        together = (kind > _LAST_SINGLE) & (row_block == 4)
        _require(~together | (kind <= _FOURS), live, "has a type that there is not")
        rows_kept = np.where(together, _LAST_SINGLE, kind)
        _require(
            rows_kept >> heights[live] == 0, live, "has a type with a row outside of the matrix"
        )
        cut = (kind == before[live]) & (before_count[live] == _FULL_RUN)
        _require((kind > before[live]) | cut, live, "has types that do not ascend")
        _require(count > 0, live, "has a run without columns")
        types = np.where(together, np.where(kind == _FOURS, 4, 2), 1)
        entries = -(-count // 2) if narrow else count
        after = here + 2 + entries * types
        _require(after <= ends[live], live, "has a run that is longer than the block")
        for number_of_type in range(4):
            more = number_of_type < types
            starts_here = (here + 2 + number_of_type * entries)[more]
            lists.append((live[more], starts_here, count[more]))
        kept[live] += count * _MEMBERS[rows_kept]
        before[live], before_count[live] = kind, count
        at[live] = after
    _require(kept == np.diff(begins[1]), number, "has another number of values than its runs ask")
    _check_columns(stream, lists, widths, narrow)


def _check_columns(
    stream: Any, lists: list[tuple[Any, Any, Any]], widths: Any, narrow: bool
) -> None:
    if not lists:
        return
    blocks, begins, counts = (np.concatenate(each) for each in zip(*lists, strict=True))
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    block = np.repeat(blocks, counts)
    if narrow:
        halves = stream.view(np.uint8)
        column = halves[np.repeat(2 * begins, counts) + number].astype(np.int64)
        odd = counts % 2 == 1
        filled = halves[(2 * begins + counts)[odd]]
        _require(filled == 0, blocks[odd], "is not filled up with 0 after an odd number of columns")
    else:
        column = stream[np.repeat(begins, counts) + number].astype(np.int64)
    _require(column < widths[block], block, "has a column outside of the matrix")
    _require((number == 0)[1:] | (np.diff(column) > 0), block[1:], "has columns that do not ascend")
    # Sorted and not counted: a false size must not make this allocate a matrix of that size.
    once = np.sort(block * WIDEST_BLOCK + column)
    _require(np.diff(once) > 0, once[1:] // WIDEST_BLOCK, "has a column twice")


def _check_starts(begins: Any, blocks: int, index_length: int, values_length: int) -> None:
    if begins.shape != (2, blocks + 1):
        _refuse(
            f"starts has shape {begins.shape}; the matrix has {blocks} blocks, which need "
            f"(2, {blocks + 1})"
        )
    for name, line, length, least in (
        ("index", begins[0], index_length, 2),
        ("values", begins[1], values_length, 0),
    ):
        # Before differences are taken, which could overflow.
        inside = (line >= 0).all() and (line <= length).all()
        if not inside or line[0] != 0 or line[-1] != length or (np.diff(line) < least).any():
            _refuse(
                f"the starts of the blocks in {name} do not go from 0 to its length {length} in "
                f"steps of {least} or more"
            )


def _require(holds: Any, blocks: Any, problem: str) -> None:
    if not holds.all():
        _refuse(f"block {int(blocks[~holds][0])} {problem}")


def _refuse(problem: str) -> NoReturn:
    raise SparseFormatError(
        f"Stream.check: the compressed matrix is corrupt: {problem}; compress the weight again, or "
        "fetch its file anew"
    )
