"""Does a model on disk satisfy the pattern that it records, or another one; what does it hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from transposable.errors import FileError, SelectionError
from transposable.export.header import BITS, Entry
from transposable.export.masks import read_masks
from transposable.export.policy import PRUNABLE_DTYPES
from transposable.export.prune import plan
from transposable.export.reader import CHUNK, TensorFile
from transposable.export.record import Reading
from transposable.export.selection import Choice
from transposable.export.source import Source
from transposable.pattern import Pattern
from transposable.verification import Report, verify


@dataclass(frozen=True, slots=True)
class Checked:
    """One tensor: its report, and with masks how many weights differ from zero where pruned.

    For a tensor with ``reading.transposed`` the places count in the tensor's transpose.
    """

    name: str
    shape: tuple[int, ...]
    reading: Reading
    report: Report
    outside_mask: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the pattern holds, and no weight stands where its mask prunes."""
        return self.report.ok and not self.outside_mask


def verify_model(
    source: Source,
    pattern: str | Pattern | None = None,
    *,
    choice: Choice | None = None,
    masks: str | os.PathLike[str] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> list[Checked]:
    """Check every tensor that should satisfy a pattern, along both axes, one at a time.

    Args:
        source: from :func:`open_source`.
        pattern: checked on the recorded tensors, or where nothing is recorded on those that
            ``prune`` would prune; None for the pattern each tensor records.
        choice: with a pattern, which tensors instead.
        masks: a masks file: the masks must satisfy their patterns and the weights the masks.
        progress: called after every checked tensor with the share done and the tensor's name.

    Raises:
        SelectionError: if there is neither a record nor a pattern, or nothing is selected.
        FileError: if source or masks cannot be read or do not belong together.
    """
    held = read_masks(masks) if masks is not None else {}
    readings = _readings(source, pattern, choice, {n: r for n, (_, r) in held.items()})
    entries = {entry.name: (shard, entry) for shard, entry in source.tensors()}
    for name, (mask, reading) in held.items():
        if name not in entries or reading.oriented_shape(entries[name][1].shape) != mask.shape:
            raise FileError(
                f"verify {source.path}: the masks hold {name!r} of shape {tuple(mask.shape)}, "
                "which the model does not; give the masks that were written with this model"
            )
    checked = []
    largest = max((entries[name][1].nbytes for name in readings), default=0)
    buffer = torch.empty(largest, dtype=torch.uint8)
    done, total = 0, sum(entries[name][1].nbytes for name in readings)
    for name, reading in readings.items():
        shard, entry = entries[name]
        if entry.dtype not in PRUNABLE_DTYPES:
            raise FileError(
                f"verify {source.path}: tensor {name!r} is recorded as pruned and has dtype "
                f"{entry.dtype}; pruned tensors have one of {', '.join(PRUNABLE_DTYPES)}; the "
                "record and the weights do not belong together"
            )
        weight = reading.orient(shard.read(entry, buffer))
        report = verify(weight, reading.pattern, layout=reading.layout)
        outside = None
        if name in held:
            mask = held[name][0]
            outside = int((weight != 0).logical_and_(~mask.tensor).count_nonzero())
            outside += mask.violations()
        checked.append(Checked(name, entry.shape, reading, report, outside))
        if progress is not None:
            done += entry.nbytes
            progress(done / max(total, 1), name)
    return checked


def _readings(
    source: Source,
    pattern: str | Pattern | None,
    choice: Choice | None,
    masks: dict[str, Reading],
) -> dict[str, Reading]:
    recorded = source.record or masks
    chosen = choice is not None and (choice.include or choice.exclude)
    if pattern is None:
        if not recorded:
            raise SelectionError(
                f"verify {source.path}: the file records no pattern; say which one to check with "
                "--pattern, for example --pattern 2:4T"
            )
        return dict(recorded)
    parsed = Pattern.parse(pattern)
    if recorded and not chosen:
        return {name: replace(reading, pattern=parsed) for name, reading in recorded.items()}
    return {
        decision.tensor.name: decision.reading
        for decision in plan(source, parsed, choice)
        if decision.reading is not None
    }


@dataclass(frozen=True, slots=True)
class Inspected:
    """One tensor of a file: how many of its elements are not zero (None for packed dtypes)."""

    entry: Entry
    file: str
    nonzero: int | None
    reading: Reading | None

    @property
    def density(self) -> float | None:
        """Share of non-zero elements."""
        return None if self.nonzero is None else self.nonzero / max(self.entry.count, 1)


def inspect_model(source: Source) -> Iterator[Inspected]:
    """Every tensor with its density, read in pieces of a few MiB."""
    buffer = bytearray(CHUNK)
    for shard, entry in source.tensors():
        nonzero = _nonzero(shard, entry, buffer)
        yield Inspected(entry, shard.path.name, nonzero, source.record.get(entry.name))


_MAGNITUDE_BITS = {"F64": 2**63 - 1, "F32": 2**31 - 1, "F16": 2**15 - 1, "BF16": 2**15 - 1}
_MAGNITUDE_BITS |= {"F8_E4M3": 127, "F8_E5M2": 127}


def _nonzero(shard: TensorFile, entry: Entry, buffer: bytearray) -> int | None:
    """Elements that are not zero, by their bits: a set sign bit alone is -0."""
    bits = BITS[entry.dtype]
    if bits % 8 or entry.dtype == "C64":
        return None
    if entry.dtype == "F8_E8M0":
        return entry.count  # powers of two: there is no zero
    kind = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]
    total = 0
    for chunk in shard.chunks(entry, buffer):
        values = torch.frombuffer(chunk, dtype=kind)
        if entry.dtype in _MAGNITUDE_BITS:
            values.bitwise_and_(_MAGNITUDE_BITS[entry.dtype])
        total += int(values.count_nonzero())
    return total
