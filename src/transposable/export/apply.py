"""One tensor through the pipeline: read, search, measure, apply, check, write."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from transposable.api import solve
from transposable.errors import ScoresError, SolverError
from transposable.export.header import Entry
from transposable.export.masks import MasksWriter
from transposable.export.reader import CHUNK, TensorFile
from transposable.export.record import Reading
from transposable.export.retention import largest_sum, relative
from transposable.export.selection import Decision
from transposable.export.source import Source
from transposable.export.writer import TensorWriter
from transposable.mask import Mask
from transposable.solvers import Solver
from transposable.verification import Report, verify


@dataclass(frozen=True, slots=True)
class PrunedTensor:
    """One pruned tensor and its figures.

    Attributes:
        name, dtype, shape: as in the file.
        reading: pattern, layout, groups and orientation.
        weights, kept: number of weights, and of those the mask keeps.
        objective: sum of the kept magnitudes.
        unstructured: sum of the magnitudes that the best unstructured mask of the pattern's density
            keeps.
        bound: upper bound on the objective of every mask of the pattern; inf without one.
        gap: relative duality gap; inf where the solver gives no bound.
        status: name of the :class:`transposable.Status`.
        violations: violated groups of the weights as written, by axis ("in", "out", or "all").
        promised: the axes along which the pattern promises none.
        seconds: time of the mask search.
        note: what is particular about this tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    reading: Reading
    weights: int
    kept: int
    objective: float
    unstructured: float
    bound: float
    gap: float
    status: str
    violations: dict[str, int]
    promised: tuple[str, ...]
    seconds: float
    note: str = ""

    @property
    def retention(self) -> float | None:
        """Kept magnitude relative to the best unstructured mask of the same density."""
        return relative(self.objective, self.unstructured)


class Worker:
    """Processes the tensors of a source with one buffer that all of them share.

    Args:
        source: the model.
        decisions: decision by name, from :func:`transposable.export.select`.
        solver: solves every tensor.
        threads: threads of the mask search; None for torch's number.
    """

    def __init__(
        self,
        source: Source,
        decisions: Mapping[str, Decision],
        solver: Solver,
        threads: int | None,
    ) -> None:
        self._decisions = decisions
        self._solver = solver
        self._threads = threads
        # Fresh memory for each tensor would cost a page fault every 4 KiB, more than the search.
        largest = max(
            (entry.nbytes for _, entry in source.tensors() if decisions[entry.name].pruned),
            default=0,
        )
        self._buffer = torch.empty(largest, dtype=torch.uint8)
        self._chunk = bytearray(CHUNK)

    def process(
        self,
        shard: TensorFile,
        entry: Entry,
        writer: TensorWriter | None,
        masks: MasksWriter | None,
    ) -> PrunedTensor | None:
        """Prune or copy one tensor; the figures if it was pruned."""
        decision = self._decisions[entry.name]
        if decision.reading is None:
            if writer is not None:
                for chunk in shard.chunks(entry, self._chunk):
                    writer.write(chunk)
            return None
        figures, mask, weight = self._prune(shard, entry, decision, decision.reading)
        if masks is not None:
            masks.write(mask)
        if writer is not None:
            writer.write(weight)
        return figures

    def _prune(
        self,
        shard: TensorFile,
        entry: Entry,
        decision: Decision,
        reading: Reading,
    ) -> tuple[PrunedTensor, Mask, torch.Tensor]:
        where = f"prune {shard.path}: tensor {entry.name!r}"
        # The signs are lost here and read again below: that costs less than a second buffer.
        scores = shard.read(entry, self._buffer).abs_()
        started = time.perf_counter()
        try:
            solution = solve(
                reading.orient(scores),
                reading.pattern,
                self._solver,
                layout=reading.layout,
                threads=self._threads,
            )
        except ScoresError as error:
            raise ScoresError(f"{where}: {error}") from error
        except SolverError as error:
            raise SolverError(f"{where}: {error}") from error
        seconds = time.perf_counter() - started
        mask = solution.mask
        # The potentials have done their work in the gap; on small tiles they are as large as the
        # weight, and verifying needs memory of its own.
        solution = replace(solution, potentials=None)
        n, m = reading.pattern.n, reading.pattern.m
        best = largest_sum(scores, -(-entry.count * n // m))
        weight = shard.read(entry, self._buffer)
        kept = reading.orient(mask.tensor)
        weight.masked_fill_(~kept, 0)
        report = verify(reading.orient(weight), reading.pattern, layout=reading.layout)
        if not report.ok:
            raise SolverError(
                f"{where}: the weights violate {reading.pattern} in {report.violations} groups "
                f"after the mask of solver {self._solver.name!r} was applied; nothing is written; "
                "use --solver exact, and report this as an error in the solver"
            )
        figures = PrunedTensor(
            name=entry.name,
            dtype=entry.dtype,
            shape=entry.shape,
            reading=reading,
            weights=entry.count,
            kept=int(kept.count_nonzero()),
            objective=solution.objective,
            unstructured=best,
            bound=solution.bound,
            gap=solution.gap,
            status=solution.status.name,
            violations={axis.axis: axis.violations for axis in report.axes},
            promised=promised(report),
            seconds=seconds,
            note=decision.note,
        )
        return figures, mask, weight


def promised(report: Report) -> tuple[str, ...]:
    """The axes along which the pattern of a report must hold."""
    return tuple(axis.axis for axis in report.axes if axis.required)


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None
