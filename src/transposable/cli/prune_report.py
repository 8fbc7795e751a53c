"""What transposable prune prints: the selection, the table of pruned tensors, the JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transposable._version import __version__
from transposable.cli import show

if TYPE_CHECKING:
    from rich.console import Console

    from transposable.export import Decision, PrunedTensor, PruneReport, ReplacedTensor, Source
    from transposable.pattern import Pattern

    AnyTensor = PrunedTensor | ReplacedTensor


def print_selection(
    source: Source, decisions: list[Decision], pattern: str, solver: str, chosen: str
) -> None:
    """What is pruned, and what is left dense for which reason."""
    console = show.console()
    pruned = [d for d in decisions if d.pruned]
    dense = [d for d in decisions if not d.pruned]
    weights = {True: 0, False: 0}
    for entry_decision, (_, entry) in zip(decisions, source.tensors(), strict=True):
        weights[entry_decision.pruned] += entry.count
    total = weights[True] + weights[False]
    by = chosen if solver == chosen else f"{chosen} (chosen by {solver})"
    console.print(f"{source.path}: to {pattern} with solver {by}")
    console.print(
        f"pruned: {len(pruned)} of {len(decisions)} tensors, {weights[True]:,} of {total:,} weights"
    )
    if not dense:
        return
    console.print(f"left dense: {len(dense)} tensors, {weights[False]:,} weights:")
    reasons: dict[str, list[str]] = {}
    for decision in dense:
        reasons.setdefault(decision.reason, []).append(decision.tensor.name)
    for reason, names in reasons.items():
        console.print(f"  {reason} ({len(names)} {'tensor' if len(names) == 1 else 'tensors'})")
        for name in show.collapse(names):
            console.print(f"      {name}", soft_wrap=True)


def print_report(report: PruneReport, out: Path | None, masks: Path | None) -> None:
    """The table of a model pruned by magnitude, and its totals."""
    console = show.console()
    console.print()
    columns = ["tensor pruned", ">shape", "layout", ">kept*", ">gap", ">ms"]
    rows = [
        [
            tensor.name,
            show.shape_text(tensor.shape),
            _layout_text(tensor),
            show.percent(tensor.retention),
            show.gap_text(tensor.gap),
            f"{1000 * tensor.seconds:.1f}",
        ]
        for tensor in report.pruned
    ]
    layouts = {row[2] for row in rows}
    if len(layouts) == 1:  # said once, so that names have more room
        for cells in (columns, *rows):
            del cells[2]
    show.print_table(console, columns, rows)
    console.print()
    if len(layouts) == 1:
        console.print(f"layout of all: {layouts.pop()}")
    console.print(total_text(report.pruned, report.retention))
    console.print(
        f"time: mask search {show.time_text(report.search_seconds)}, all "
        f"{show.time_text(report.seconds)}"
    )
    console.print(f"verified on the weights as written: {verified_text(report.pruned)}")
    console.print(f"* {kept_text(report.pattern)}")
    notes = [f"{tensor.name}: {tensor.note}" for tensor in report.pruned if tensor.note]
    print_end(console, [*notes, *report.notes], out, masks)


def print_end(console: Console, notes: Sequence[str], out: Path | None, masks: Path | None) -> None:
    """Notes, and what was written where."""
    for note in notes:
        console.print(f"note: {note}")
    if masks is not None:
        console.print(f"wrote masks: {masks}")
    console.print(f"wrote: {out}" if out is not None else "dry run: nothing written")


def _layout_text(tensor: PrunedTensor) -> str:
    layout = tensor.reading.layout
    text = layout.name if layout.groups == 1 else f"{layout.name}/{layout.groups}"
    return f"{text} [in, out]" if tensor.reading.transposed else text


def total_text(pruned: Sequence[AnyTensor], retention: float | None) -> str:
    """How much of the model was pruned, in one line."""
    weights = sum(tensor.weights for tensor in pruned)
    kept = sum(tensor.kept for tensor in pruned)
    return (
        f"total: {len(pruned)} tensors, {weights:,} weights, {kept:,} kept "
        f"({100 * kept / max(weights, 1):.2f} %), kept* {show.percent(retention)}"
    )


def kept_text(pattern: Pattern) -> str:
    """What the column kept* means."""
    density = f"{100 * pattern.density:.6g} %"
    return f"kept magnitude relative to unstructured {density} of the same tensor"


def verified_text(pruned: Sequence[AnyTensor]) -> str:
    """Violated groups by axis."""
    axes: dict[str, int] = {}
    promised: set[str] = set()
    for tensor in pruned:
        promised |= set(tensor.promised)
        for axis, count in tensor.violations.items():
            axes[axis] = axes.get(axis, 0) + count
    parts = []
    for axis, count in axes.items():
        note = "" if axis in promised else " (not promised by this pattern)"
        name = "whole tensors" if axis == "all" else f"axis {axis}"
        parts.append(f"{name} {count:,} groups violated{note}")
    return ", ".join(parts)


def tensor_document(tensor: PrunedTensor) -> dict[str, Any]:
    """The figures of one tensor as JSON."""
    from transposable.export.apply import finite

    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        **tensor.reading.to_json(),
        "weights": tensor.weights,
        "kept": tensor.kept,
        "objective": finite(tensor.objective),
        "unstructured": finite(tensor.unstructured),
        "retention": finite(tensor.retention),
        "bound": finite(tensor.bound),
        "gap": finite(tensor.gap),
        "status": tensor.status,
        "violations": tensor.violations,
        "promised": list(tensor.promised),
        "seconds": tensor.seconds,
        "note": tensor.note,
    }


def document(
    report: PruneReport, src: Path, out: Path | None, masks: Path | None
) -> dict[str, Any]:
    """The figures of a model pruned by magnitude as JSON."""
    weights = sum(tensor.weights for tensor in report.pruned)
    kept = sum(tensor.kept for tensor in report.pruned)
    return {
        "command": "prune",
        "version": __version__,
        "source": str(src),
        "out": None if out is None else str(out),
        "masks": None if masks is None else str(masks),
        "dry_run": out is None,
        "pattern": str(report.pattern),
        "solver": report.solver,
        "tensors": [tensor_document(tensor) for tensor in report.pruned],
        "dense": [dense_document(decision) for decision in report.dense],
        "totals": {
            "tensors": len(report.pruned),
            "weights": weights,
            "kept": kept,
            "retention": report.retention,
            "violations": violations(report.pruned),
            "search_seconds": report.search_seconds,
            "seconds": report.seconds,
        },
        "notes": list(report.notes),
    }


def dense_document(decision: Decision) -> dict[str, Any]:
    """A tensor that is left dense as JSON."""
    return {
        "name": decision.tensor.name,
        "dtype": decision.tensor.dtype,
        "shape": list(decision.tensor.shape),
        "reason": decision.reason,
    }


def violations(pruned: Sequence[AnyTensor]) -> int:
    """Violated groups along the axes that the pattern promises."""
    return sum(
        count
        for tensor in pruned
        for axis, count in tensor.violations.items()
        if axis in tensor.promised
    )
