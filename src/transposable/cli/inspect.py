"""transposable inspect: what a model file holds, and what prune would do with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transposable._version import __version__
from transposable.cli import show
from transposable.cli.app import EXIT_CODES, debug_option, json_option

if TYPE_CHECKING:
    from transposable.export import Decision, Inspected, Source

ASSUMED = "2:4T"
"""Pattern for which the selection is shown; the choice of tensors is the same for all of them."""


@click.command(
    name="inspect",
    epilog=EXIT_CODES,
    short_help="List the tensors of a model and what prune would do.",
)
@click.argument("src", type=click.Path(path_type=Path))
@json_option
@debug_option
def command(src: Path, as_json: bool) -> None:
    """List the tensors of SRC: shape, dtype, density, recorded pattern.

    The last column says whether prune would prune a tensor by default, or why not.
    """
    from transposable.errors import SelectionError
    from transposable.export import inspect_model, open_source, plan

    with open_source(src) as source:
        try:
            decisions = {d.tensor.name: d for d in plan(source, ASSUMED)}
        except SelectionError:
            decisions = {}  # nothing would be pruned; the reasons follow all the same
        if not decisions:
            decisions = _all_dense(source)
        with show.progress("reading") as progress:
            found, done = [], 0
            for tensor in inspect_model(source):
                found.append(tensor)
                done += tensor.entry.nbytes
                progress(done / max(source.nbytes, 1), tensor.entry.name)
        if as_json:
            show.document(_document(source, found, decisions))
        else:
            _print(source, found, decisions)


def _all_dense(source: Source) -> dict[str, Decision]:
    from transposable.export.policy import Tensor, default_reasons, impossible
    from transposable.export.selection import Decision

    tensors = [Tensor(entry.name, entry.dtype, entry.shape) for _, entry in source.tensors()]
    reasons = default_reasons(tensors, source.config)
    return {
        tensor.name: Decision(tensor, None, impossible(tensor) or reasons.get(tensor.name, ""))
        for tensor in tensors
    }


def _print(source: Source, found: list[Inspected], decisions: dict[str, Decision]) -> None:
    console = show.console()
    columns = ["tensor", ">shape", "dtype", ">density", "recorded", "prune would"]
    rows = []
    for tensor in found:
        recorded = "" if tensor.reading is None else str(tensor.reading.pattern)
        rows.append(
            (
                tensor.entry.name,
                show.shape_text(tensor.entry.shape),
                tensor.entry.dtype,
                show.percent(tensor.density),
                recorded,
                _plan_text(decisions[tensor.entry.name]),
            )
        )
    show.print_table(console, columns, rows)
    console.print()
    elements = sum(tensor.entry.count for tensor in found)
    pruned = [tensor for tensor in found if decisions[tensor.entry.name].pruned]
    console.print(
        f"{source.path}: {len(source.shards)} file{'s' if len(source.shards) > 1 else ''}, "
        f"{len(found)} tensors, {elements:,} elements, {source.nbytes:,} bytes"
    )
    console.print(
        f"by default prune would prune {len(pruned)} tensors, "
        f"{sum(tensor.entry.count for tensor in pruned):,} weights"
    )
    patterns = sorted({str(reading.pattern) for reading in source.record.values()})
    if patterns:
        console.print(f"recorded as pruned: {len(source.record)} tensors, to {', '.join(patterns)}")
    for note in source.notes:
        console.print(f"note: {note}")


def _plan_text(decision: Decision) -> str:
    if decision.reading is None:
        return f"leave: {decision.reason}"
    layout = decision.reading.layout.name
    return f"prune ({layout})"


def _document(
    source: Source, found: list[Inspected], decisions: dict[str, Decision]
) -> dict[str, Any]:
    return {
        "command": "inspect",
        "version": __version__,
        "source": str(source.path),
        "files": [shard.path.name for shard in source.shards],
        "bytes": source.nbytes,
        "tensors": [
            {
                "name": tensor.entry.name,
                "file": tensor.file,
                "dtype": tensor.entry.dtype,
                "shape": list(tensor.entry.shape),
                "elements": tensor.entry.count,
                "density": tensor.density,
                "recorded": None if tensor.reading is None else tensor.reading.to_json(),
                "prune": decisions[tensor.entry.name].pruned,
                "reason": decisions[tensor.entry.name].reason,
            }
            for tensor in found
        ],
        "metadata": {
            shard.path.name: {
                key: value
                for key, value in (shard.header.metadata or {}).items()
                if key != "transposable.tensors"  # given tensor by tensor above
            }
            for shard in source.shards
        },
        "notes": list(source.notes),
    }
