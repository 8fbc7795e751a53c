"""transposable prune: a model on disk, pruned to a pattern, with a table of what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transposable._version import __version__
from transposable.cli import show
from transposable.cli.app import EXIT_CODES, debug_option, json_option

if TYPE_CHECKING:
    from transposable.export import Decision, PrunedTensor, PruneReport, Source


@click.command(
    name="prune",
    epilog=EXIT_CODES,
    short_help="Prune a model to a pattern and write it.",
)
@click.argument("src", type=click.Path(path_type=Path))
@click.option("--pattern", "-p", required=True, help="N:MT, N:M, N:MS or P%, e.g. 4:8T.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="File or directory to write; may be SRC."
)
@click.option(
    "--include",
    "-i",
    multiple=True,
    metavar="GLOB|re:REGEX",
    help="Prune the tensors of these names, and no others, against the policy if need be. "
    "Repeatable.",
)
@click.option(
    "--exclude",
    "-x",
    multiple=True,
    metavar="GLOB|re:REGEX",
    help="Leave the tensors of these names dense; wins over --include. Repeatable.",
)
@click.option("--solver", default="auto", show_default=True, help="See 'transposable solvers'.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads; default: all cores.")
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    metavar="[GLOB=]NAME",
    help="How tensors are read: linear, conv or stacked. Repeatable.",
)
@click.option(
    "--groups",
    multiple=True,
    metavar="GLOB=G",
    help="Groups of grouped convolutions, which the file does not tell. Repeatable.",
)
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the masks, one bit a weight.",
)
@click.option("--dry-run", is_flag=True, help="Search the masks and report; write nothing.")
@json_option
@debug_option
def command(
    src: Path,
    pattern: str,
    out: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    solver: str,
    threads: int | None,
    layouts: tuple[str, ...],
    groups: tuple[str, ...],
    masks: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Prune SRC by magnitude to a pattern and write the result to --out.

    SRC is a .safetensors file, a sharded directory with its index, or a Hugging Face model
    directory. Without --include, biases, norms, embeddings, the first convolution, heads and
    everything else that is no inner weight stay dense; the list is printed.
    """
    if out is None and not dry_run:
        raise click.UsageError("give --out, the file or directory to write, or --dry-run")
    if dry_run and masks is not None:
        raise click.UsageError("--dry-run writes nothing; leave out --masks")
    from transposable.cli.setup import checked_solver, set_threads
    from transposable.export import Choice, open_source, plan, prune_model

    chosen = checked_solver(solver, pattern)
    set_threads(threads)
    choice = Choice(include, exclude, layouts, groups)
    with open_source(src) as source:
        decisions = plan(source, pattern, choice)
        if not as_json:
            _print_selection(source, decisions, pattern, solver, chosen.name)
        with show.progress("pruning") as progress:
            report = prune_model(
                source,
                pattern,
                None if dry_run else out,
                choice=choice,
                solver=chosen,
                threads=threads,
                masks=masks,
                progress=progress,
            )
    if as_json:
        show.document(_document(report, src, None if dry_run else out, masks))
    else:
        _print_report(report, None if dry_run else out, masks)


def _print_selection(
    source: Source, decisions: list[Decision], pattern: str, solver: str, chosen: str
) -> None:
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


def _print_report(report: PruneReport, out: Path | None, masks: Path | None) -> None:
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
    weights = sum(tensor.weights for tensor in report.pruned)
    kept = sum(tensor.kept for tensor in report.pruned)
    density = f"{100 * report.pattern.density:.6g} %"
    console.print()
    if len(layouts) == 1:
        console.print(f"layout of all: {layouts.pop()}")
    console.print(
        f"total: {len(report.pruned)} tensors, {weights:,} weights, {kept:,} kept "
        f"({100 * kept / max(weights, 1):.2f} %), kept* {show.percent(report.retention)}"
    )
    console.print(
        f"time: mask search {show.time_text(report.search_seconds)}, all "
        f"{show.time_text(report.seconds)}"
    )
    console.print(f"verified on the weights as written: {_verified(report)}")
    console.print(f"* kept magnitude relative to unstructured {density} of the same tensor")
    for tensor in report.pruned:
        if tensor.note:
            console.print(f"note: {tensor.name}: {tensor.note}")
    for note in report.notes:
        console.print(f"note: {note}")
    if masks is not None:
        console.print(f"wrote masks: {masks}")
    console.print(f"wrote: {out}" if out is not None else "dry run: nothing written")


def _layout_text(tensor: PrunedTensor) -> str:
    layout = tensor.reading.layout
    text = layout.name if layout.groups == 1 else f"{layout.name}/{layout.groups}"
    return f"{text} [in, out]" if tensor.reading.transposed else text


def _verified(report: PruneReport) -> str:
    axes: dict[str, int] = {}
    promised: set[str] = set()
    for tensor in report.pruned:
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


def _document(
    report: PruneReport, src: Path, out: Path | None, masks: Path | None
) -> dict[str, Any]:
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
        "dense": [
            {
                "name": decision.tensor.name,
                "dtype": decision.tensor.dtype,
                "shape": list(decision.tensor.shape),
                "reason": decision.reason,
            }
            for decision in report.dense
        ],
        "totals": {
            "tensors": len(report.pruned),
            "weights": weights,
            "kept": kept,
            "retention": report.retention,
            "violations": sum(
                count
                for tensor in report.pruned
                for axis, count in tensor.violations.items()
                if axis in tensor.promised
            ),
            "search_seconds": report.search_seconds,
            "seconds": report.seconds,
        },
        "notes": list(report.notes),
    }
