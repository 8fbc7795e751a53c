"""The outputs of a pruned model: opened before the work, put in place after it, all or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from transposable.export.atomic import Transaction, absolute
from transposable.export.header import Entry
from transposable.export.masks import MasksWriter
from transposable.export.reader import TensorFile
from transposable.export.record import Reading, write_record
from transposable.export.source import Source
from transposable.export.targets import check_targets, fill_directory
from transposable.export.writer import TensorWriter
from transposable.pattern import Pattern


class Figures(Protocol):
    """What is known of a pruned tensor."""

    @property
    def weights(self) -> int: ...


Found = TypeVar("Found", bound=Figures)

Process = Callable[[TensorFile, Entry, TensorWriter | None, MasksWriter | None], Found | None]
"""Writes one tensor, and its mask if it is pruned; returns the figures of a pruned one."""


class Outputs:
    """Where a pruned model and its masks go.

    Entering opens the outputs and carries over the other files of a directory, so that a target
    that cannot be written is an error before the work starts. Leaving without an error puts all of
    them in place; otherwise what was there before is untouched.

    Args:
        source: the model.
        pattern: recorded as that of the whole file.
        readings: how each tensor that is pruned is read, by its name.
        out: the file or directory for the weights, or None.
        masks: the file for the masks, or None.

    Raises:
        OutputError: if an output cannot be written.
    """

    def __init__(
        self,
        source: Source,
        pattern: Pattern,
        readings: Mapping[str, Reading],
        out: str | os.PathLike[str] | None,
        masks: str | os.PathLike[str] | None,
    ) -> None:
        check_targets(source, out, masks)
        self.notes: list[str] = []
        self._source = source
        self._pattern = pattern
        self._readings = readings
        self._out = out
        self._masks_path = masks
        self._masks: MasksWriter | None = None
        self._transaction = Transaction()

    def __enter__(self) -> Self:
        self._transaction.__enter__()
        try:
            if self._out is not None and self._source.is_directory:
                self.notes = fill_directory(self._transaction, self._source, Path(self._out))
            if self._masks_path is not None:
                file = self._transaction.file(self._masks_path)
                self._masks = MasksWriter(file, self._announced())
        except BaseException as error:
            self._transaction.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._transaction.__exit__(kind, error, trace)

    def write(
        self, process: Process[Found], progress: Callable[[float, str], None] | None = None
    ) -> list[Found]:
        """Stream every tensor of the source; the figures of those that are pruned.

        Args:
            process: called for every tensor, in the order of the bytes.
            progress: called after every pruned tensor with the share done and the tensor's name.
        """
        found: list[Found] = []
        done = 0
        counts = [e.count for _, e in self._source.tensors() if e.name in self._readings]
        total = max(sum(counts), 1)
        for shard in self._source.shards:
            writer = self._writer(shard)
            for entry in shard.header.stored:
                figures = process(shard, entry, writer, self._masks)
                if figures is not None:
                    found.append(figures)
                    done += figures.weights
                    if progress is not None:
                        progress(done / total, entry.name)
            if writer is not None:
                writer.finish()
        if self._masks is not None:
            self._masks.finish()
        return found

    def _announced(self) -> dict[str, tuple[tuple[int, ...], Reading]]:
        """The masks that will be found, in the order in which they will be written."""
        found = {}
        for _, entry in self._source.tensors():
            reading = self._readings.get(entry.name)
            if reading is not None:
                found[entry.name] = (reading.oriented_shape(entry.shape), reading)
        return found

    def _writer(self, shard: TensorFile) -> TensorWriter | None:
        if self._out is None:
            return None
        directory = self._source.is_directory
        path = absolute(self._out) / shard.path.name if directory else Path(self._out)
        record = {}
        for entry in shard.header.entries:
            # What an earlier run pruned and this one leaves alone stays recorded.
            reading = self._readings.get(entry.name) or self._source.record.get(entry.name)
            if reading is not None:
                record[entry.name] = reading
        metadata = write_record(shard.header.metadata, self._pattern, record)
        return TensorWriter(self._transaction.file(path), shard.header, metadata)
