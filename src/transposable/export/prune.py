"""Prune a model on disk: decide, then stream every tensor from the source to the output."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from transposable.export.apply import PrunedTensor, Worker
from transposable.export.outputs import Outputs
from transposable.export.policy import Tensor
from transposable.export.retention import relative
from transposable.export.selection import Choice, Decision, select
from transposable.export.source import Source
from transposable.pattern import Pattern
from transposable.solvers import Auto, Solver, make_solver


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What :func:`prune_model` did."""

    pattern: Pattern
    solver: str
    pruned: tuple[PrunedTensor, ...]
    dense: tuple[Decision, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def search_seconds(self) -> float:
        """Time of all mask searches."""
        return sum(tensor.seconds for tensor in self.pruned)

    @property
    def retention(self) -> float | None:
        """Kept magnitude of all pruned tensors relative to the best unstructured masks."""
        kept = sum(tensor.objective for tensor in self.pruned)
        return relative(kept, sum(tensor.unstructured for tensor in self.pruned))


def plan(source: Source, pattern: str | Pattern, choice: Choice | None = None) -> list[Decision]:
    """What :func:`prune_model` would do with every tensor of a source."""
    tensors = [Tensor(entry.name, entry.dtype, entry.shape) for _, entry in source.tensors()]
    return select(tensors, source.config, Pattern.parse(pattern), choice)


def prune_model(
    source: Source,
    pattern: str | Pattern,
    out: str | os.PathLike[str] | None,
    *,
    choice: Choice | None = None,
    solver: str | Solver | type[Solver] = "auto",
    threads: int | None = None,
    masks: str | os.PathLike[str] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> PruneReport:
    """Prune a model on disk by magnitude and write it, one tensor in memory at a time.

    Args:
        source: from :func:`open_source`.
        pattern: for example "4:8T".
        out: the file or directory to write; may be that of the source. None searches the masks,
            reports and writes no weights.
        choice: which tensors; by default the policy of docs/cli.md.
        solver: as in :func:`transposable.solve`.
        threads: threads of the mask search.
        masks: a file for the masks, one bit a weight.
        progress: called after every pruned tensor with the share done and the tensor's name.

    Returns:
        A :class:`PruneReport`.

    Raises:
        FileError: if the source turns out to be unreadable.
        OutputError: if the output cannot be written; what was there before is untouched.
        ScoresError: if a weight holds NaN.
        SelectionError: if a name pattern matches nothing, or nothing is left to prune.
        SolverError: if the solver does not accept the pattern or does not deliver.

    Complexity: one pass over the bytes; peak memory is two to four times the largest pruned tensor.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from safetensors.torch import load_file, save_file
        >>> from transposable.export import open_source
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_file({"a.weight": torch.randn(8, 8)}, path)
        >>> with open_source(path) as source:
        ...     report = prune_model(source, "2:4T", path)
        >>> report.pruned[0].violations, load_file(path)["a.weight"].count_nonzero().item()
        ({'in': 0, 'out': 0}, 32)
    """
    started = time.perf_counter()
    pattern = Pattern.parse(pattern)
    chosen = make_solver(solver)
    if isinstance(chosen, Auto):
        chosen = chosen.choose(pattern)
    decisions = {decision.tensor.name: decision for decision in plan(source, pattern, choice)}
    readings = {name: d.reading for name, d in decisions.items() if d.reading is not None}
    outputs = Outputs(source, pattern, readings, out, masks)
    worker = Worker(source, decisions, chosen, threads)
    with outputs:
        pruned = outputs.write(worker.process, progress)
    dense = tuple(decision for decision in decisions.values() if not decision.pruned)
    notes = (*source.notes, *outputs.notes)
    seconds = time.perf_counter() - started
    return PruneReport(pattern, chosen.name, tuple(pruned), dense, notes, seconds)
