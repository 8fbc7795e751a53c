"""transposable verify: does a model on disk satisfy its pattern, and where not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from transposable._version import __version__
from transposable.cli import show
from transposable.cli.app import EXIT_CODES, OK, VIOLATED, debug_option, json_option

if TYPE_CHECKING:
    from transposable.export import Checked

PLACES = 5
"""Places of violations printed per tensor and axis."""

JSON_PLACES = 100
"""Places of violations in the JSON document per tensor and axis."""


@click.command(
    name="verify",
    epilog=EXIT_CODES,
    short_help="Check that a model satisfies its pattern.",
)
@click.argument("src", type=click.Path(path_type=Path))
@click.option("--pattern", "-p", help="The pattern to check; default: the one each tensor records.")
@click.option(
    "--include",
    "-i",
    multiple=True,
    metavar="GLOB|re:REGEX",
    help="With --pattern: check the tensors of these names. Repeatable.",
)
@click.option(
    "--exclude",
    "-x",
    multiple=True,
    metavar="GLOB|re:REGEX",
    help="With --pattern: do not check the tensors of these names. Repeatable.",
)
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    metavar="[GLOB=]NAME",
    help="With --include or --exclude: how tensors are read: linear, conv or stacked.",
)
@click.option(
    "--groups", multiple=True, metavar="GLOB=G", help="The same: groups of grouped convolutions."
)
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also check the masks of this file, and that the weights are zero where they prune.",
)
@json_option
@debug_option
def command(
    src: Path,
    pattern: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    layouts: tuple[str, ...],
    groups: tuple[str, ...],
    masks: Path | None,
    as_json: bool,
) -> int:
    """Check that the weights of SRC satisfy a pattern along every axis that it promises.

    Exits with 1 when they do not, after listing the places.
    """
    if (include or exclude or layouts or groups) and pattern is None:
        raise click.UsageError("--include, --exclude, --layout and --groups need --pattern")
    from transposable.export import Choice, open_source, verify_model

    with open_source(src) as source, show.progress("verifying") as progress:
        checked = verify_model(
            source,
            pattern,
            choice=Choice(include, exclude, layouts, groups),
            masks=masks,
            progress=progress,
        )
    ok = all(tensor.ok for tensor in checked)
    if as_json:
        show.document(_document(checked, src, masks, ok))
    else:
        _print(checked, src, masks, ok)
    return OK if ok else VIOLATED


def _print(checked: list[Checked], src: Path, masks: Path | None, ok: bool) -> None:
    console = show.console()
    columns = ["tensor", ">shape", "pattern", ">density", ">in: violated", ">out", "result"]
    rows = []
    for tensor in checked:
        counts = {axis.axis: axis for axis in tensor.report.axes}
        cells = []
        for name in ("in", "out"):
            axis = counts.get(name, counts.get("all") if name == "in" else None)
            mark = "" if axis is None or axis.required else "~"
            cells.append("-" if axis is None else f"{mark}{axis.violations:,}")
        rows.append(
            (
                tensor.name,
                show.shape_text(tensor.shape),
                str(tensor.report.pattern),
                show.percent(tensor.report.density),
                *cells,
                "holds" if tensor.ok else "VIOLATED",
            )
        )
    show.print_table(console, columns, rows)
    console.print()
    if any(not axis.required for tensor in checked for axis in tensor.report.axes):
        console.print("~ not promised by the pattern, for information")
    for tensor in checked:
        for line in _places(tensor):
            console.print(line, soft_wrap=True)
    bad = sum(not tensor.ok for tensor in checked)
    what = "the pattern holds" if masks is None else "patterns and masks hold"
    if ok:
        console.print(f"{src}: {what} in all {len(checked)} tensors")
    else:
        console.print(f"{src}: VIOLATED in {bad} of {len(checked)} tensors")


def _places(tensor: Checked) -> list[str]:
    lines = []
    swapped = " (of the transposed weight)" if tensor.reading.transposed else ""
    for axis in tensor.report.axes:
        if not axis.required or not axis.violations:
            continue
        most = tensor.report.pattern
        lines.append(
            f"{tensor.name}: axis {axis.axis}: {axis.violations:,} of {axis.groups:,} groups "
            f"violate {most}, most kept {axis.most_kept}{swapped}"
        )
        lines += [f"    group at {list(p.index)}: keeps {p.kept}" for p in axis.places[:PLACES]]
        more = axis.violations - min(PLACES, len(axis.places))
        if more:
            lines.append(f"    and {more:,} more")
    if tensor.outside_mask:
        lines.append(
            f"{tensor.name}: {tensor.outside_mask:,} weights or groups contradict the mask"
        )
    return lines


def _document(checked: list[Checked], src: Path, masks: Path | None, ok: bool) -> dict[str, Any]:
    return {
        "command": "verify",
        "version": __version__,
        "source": str(src),
        "masks": None if masks is None else str(masks),
        "ok": ok,
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                **tensor.reading.to_json(),
                "ok": tensor.ok,
                "density": tensor.report.density,
                "outside_mask": tensor.outside_mask,
                "axes": [
                    {
                        "axis": axis.axis,
                        "promised": axis.required,
                        "groups": axis.groups,
                        "violations": axis.violations,
                        "most_kept": axis.most_kept,
                        "places": [
                            {"index": list(place.index), "kept": place.kept}
                            for place in axis.places[:JSON_PLACES]
                        ],
                    }
                    for axis in tensor.report.axes
                ],
            }
            for tensor in checked
        ],
    }
