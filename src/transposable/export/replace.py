"""A model written again with other values in some of its tensors, checked as they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from transposable.errors import ScoresError
from transposable.export.apply import promised
from transposable.export.header import Entry
from transposable.export.masks import MasksWriter
from transposable.export.reader import CHUNK, TORCH_DTYPES, TensorFile
from transposable.export.record import Reading
from transposable.export.retention import largest_sum, relative
from transposable.export.writer import TensorWriter
from transposable.mask import Mask
from transposable.verification import verify


@dataclass(frozen=True, slots=True)
class ReplacedTensor:
    """One pruned tensor as written; the fields are those of :class:`PrunedTensor`.

    ``objective`` and ``unstructured`` are sums of magnitudes of the weights before the update.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    reading: Reading
    weights: int
    kept: int
    objective: float
    unstructured: float
    violations: dict[str, int]
    promised: tuple[str, ...]
    note: str = ""

    @property
    def retention(self) -> float | None:
        """Kept magnitude relative to the best unstructured mask of the same density."""
        return relative(self.objective, self.unstructured)


class Replacer:
    """Copies the tensors of a model, but for those that have new values.

    Args:
        readings: how each pruned tensor is read, by its name.
        values: new values by name: of all pruned tensors, and of others such as biases.
        masks: bool masks of the pruned tensors, in the shape of the tensor.
        notes: what is particular about a pruned tensor.
    """

    def __init__(
        self,
        readings: Mapping[str, Reading],
        values: Mapping[str, torch.Tensor],
        masks: Mapping[str, torch.Tensor],
        notes: Mapping[str, str],
    ) -> None:
        self._readings = readings
        self._values = values
        self._masks = masks
        self._notes = notes
        self._chunk = bytearray(CHUNK)

    def process(
        self,
        shard: TensorFile,
        entry: Entry,
        writer: TensorWriter | None,
        masks: MasksWriter | None,
    ) -> ReplacedTensor | None:
        """Copy or replace one tensor; the figures if it is a pruned one.

        Raises:
            ScoresError: if a new value is none of the file's dtype.
        """
        if entry.name not in self._values:
            if writer is not None:
                for chunk in shard.chunks(entry, self._chunk):
                    writer.write(chunk)
            return None
        value = self._rounded(shard, entry)
        figures = None
        if entry.name in self._readings:
            figures = self._check(shard, entry, value, masks)
            # A product with a mask leaves zeros with signs.
            value = value.masked_fill(~self._masks[entry.name].cpu(), 0)
        if writer is not None:
            writer.write(value)
        return figures

    def _rounded(self, shard: TensorFile, entry: Entry) -> torch.Tensor:
        """The new values in the dtype of the file."""
        given = self._values[entry.name].detach().cpu()
        if tuple(given.shape) != entry.shape or entry.dtype not in TORCH_DTYPES:
            raise RuntimeError(
                f"write {shard.path}: tensor {entry.name!r} is {entry.dtype} {entry.shape} and was "
                f"given values of shape {tuple(given.shape)}; this is an error in the caller"
            )
        value = given.to(TORCH_DTYPES[entry.dtype]).contiguous()
        if not bool(value.isfinite().all()):
            raise ScoresError(
                f"write {shard.path}: tensor {entry.name!r}: a new value of magnitude "
                f"{float(given.abs().max()):.3g} is more than {entry.dtype} holds; nothing is "
                "written; convert the model to BF16 or F32 first, or --exclude this tensor"
            )
        return value

    def _check(
        self, shard: TensorFile, entry: Entry, value: torch.Tensor, masks: MasksWriter | None
    ) -> ReplacedTensor:
        reading = self._readings[entry.name]
        kept = self._masks[entry.name].cpu()
        oriented = reading.orient(value)
        report = verify(oriented, reading.pattern, layout=reading.layout)
        mask = Mask(reading.orient(kept).contiguous(), reading.pattern, layout=reading.layout)
        outside = int((value.ne(0) & ~kept).count_nonzero())
        if not report.ok or outside or not verify(mask, reading.pattern).ok:
            raise RuntimeError(
                f"write {shard.path}: tensor {entry.name!r} violates {reading.pattern} in "
                f"{report.violations} groups, with {outside} weights outside its mask; nothing is "
                "written; this is an error in the pruning method"
            )
        if masks is not None:
            masks.write(mask)
        before = shard.read(entry).abs_()
        n, m = reading.pattern.n, reading.pattern.m
        return ReplacedTensor(
            name=entry.name,
            dtype=entry.dtype,
            shape=entry.shape,
            reading=reading,
            weights=entry.count,
            kept=int(kept.count_nonzero()),
            objective=float(before.double().mul_(kept).sum()),
            unstructured=largest_sum(before, -(-entry.count * n // m)),
            violations={axis.axis: axis.violations for axis in report.axes},
            promised=promised(report),
            note=self._notes.get(entry.name, ""),
        )
