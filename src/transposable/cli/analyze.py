"""transposable analyze: which pattern suits a model, and what it costs, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from transposable.cli import show
from transposable.cli.app import EXIT_CODES, debug_option

if TYPE_CHECKING:
    from transposable.analysis import Retention, Study
    from transposable.pattern import Pattern

PATTERNS: Final = "2:4,4:8,2:4T,4:8T,4:8S"
"""The patterns of the paper; unstructured is what they are compared with."""

SAMPLE: Final = 1 << 20
"""Weights measured in each layer, unless --sample says otherwise."""


@click.command(
    name="analyze",
    epilog=EXIT_CODES,
    short_help="Compare patterns on a model: one HTML page.",
)
@click.argument("src", type=click.Path(path_type=Path))
@click.option(
    "--patterns",
    "-p",
    default=PATTERNS,
    show_default=True,
    metavar="P,P,...",
    help="The patterns to compare.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    help="The HTML page to write; one that is there is replaced.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="All figures."
)
@click.option(
    "--png",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also write the plots there, as PNG; created if missing.",
)
@click.option(
    "--scores",
    type=click.Choice(["l1", "l2"]),
    default="l1",
    show_default=True,
    help="What masks keep the most of: |w|, or w^2.",
)
@click.option(
    "--sample",
    default=str(SAMPLE),
    show_default=True,
    metavar="N|all",
    help="Weights to measure in each layer at most, in whole tiles drawn at random.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the samples."
)
@click.option(
    "--show",
    "shown",
    multiple=True,
    metavar="GLOB|re:REGEX",
    help="Draw the masks of the layers of these names; default: first, middle, last. Repeatable.",
)
@click.option(
    "--include",
    "-i",
    multiple=True,
    metavar="GLOB|re:REGEX",
    help="Analyse the tensors of these names, and no others. Repeatable.",
)
@click.option(
    "--exclude",
    "-x",
    multiple=True,
    metavar="GLOB|re:REGEX",
    help="Leave out the tensors of these names; wins over --include. Repeatable.",
)
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    metavar="[GLOB=]NAME",
    help="How tensors are read: linear, conv or stacked. Repeatable.",
)
@click.option(
    "--groups", multiple=True, metavar="GLOB=G", help="Groups of grouped convolutions. Repeatable."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads; default: all cores.")
@debug_option
def command(
    src: Path,
    patterns: str,
    out: Path,
    json_file: Path | None,
    png: Path | None,
    scores: str,
    sample: str,
    seed: int,
    shown: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    layouts: tuple[str, ...],
    groups: tuple[str, ...],
    threads: int | None,
) -> None:
    """Measure what the best mask of each pattern keeps of SRC, and write a page about it.

    SRC is a .safetensors file, a sharded directory with its index, or a Hugging Face model
    directory; the layers are those that prune would prune. The page needs no network and no other
    file. A layer with NaN is named and left out, and the exit code is then 3.
    """
    parsed = _patterns(patterns)
    most = _sample(sample)
    from transposable.analysis import document, draw_all, page, study
    from transposable.cli.analyze_files import Files
    from transposable.cli.setup import set_threads
    from transposable.errors import ScoresError
    from transposable.export import Choice, open_source

    page.check()
    set_threads(threads)
    # The outputs are opened first: what cannot be written is an error before the work.
    with open_source(src) as source, Files(source, out, json_file, png) as outputs:
        with show.progress("analyzing", eta=True) as progress:
            found = study(
                source,
                parsed,
                scores,
                choice=Choice(include, exclude, layouts, groups),
                show=shown,
                sample=most,
                seed=seed,
                threads=threads,
                progress=progress,
            )
        drawings = draw_all(found)
        outputs.write(page.render(found, drawings), document(found), drawings, found.pictures)
    _print(found, outputs.written)
    if found.retention.failed:
        raise ScoresError(f"analyze {src}: {_failed_text(found.retention)}")


def _patterns(text: str) -> list[Pattern]:
    from transposable.pattern import Pattern

    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise click.UsageError(
            f"--patterns: received {text!r}; give patterns with a comma between each, such as "
            f"{PATTERNS}"
        )
    return [Pattern.parse(name) for name in names]


def _sample(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise click.UsageError(
            f"--sample: received {text!r}; give a number of weights, at least 1, or 'all'"
        )
    return int(text)


def _failed_text(kept: Retention) -> str:
    failed = kept.failed
    first = failed[0]
    others = f", and {len(failed) - 1:,} more like it" if len(failed) > 1 else ""
    return (
        f"tensor {first.name!r} is left out: {first.reason}{others}; the page is written without "
        "what holds NaN; find where it comes from, or --exclude it"
    )


def _print(found: Study, written: list[Path]) -> None:
    from transposable.analysis import findings
    from transposable.analysis.page import percent_text, sampling_text

    console = show.console()
    kept = found.retention
    console.print(
        f"{kept.title}: {len(kept.layers):,} layer{'' if len(kept.layers) == 1 else 's'}, "
        f"{kept.weights:,} weights",
        soft_wrap=True,
    )
    if kept.layers:
        console.print(sampling_text(kept), soft_wrap=True)
        columns = ["pattern", ">kept*, %", ">least", ">most", ">of dense", ">proved", ">search"]
        rows = []
        for pattern in kept.patterns:
            total = kept.total(pattern)
            rows.append(
                [
                    str(pattern),
                    percent_text(total.relative),
                    percent_text(total.least),
                    percent_text(total.most),
                    percent_text(total.of_dense),
                    f"{total.proved:,} of {total.layers:,}",
                    show.time_text(total.seconds),
                ]
            )
        console.print()
        show.print_table(console, columns, rows)
        console.print()
        console.print("* of what the best unstructured mask of the same size keeps")
    for line in findings(found):
        console.print(f"- {line}", soft_wrap=True)
    for one in kept.failed[:10]:
        console.print(f"left out: {one.name}: {one.reason}", soft_wrap=True)
    for note in kept.notes:
        console.print(f"note: {note}", soft_wrap=True)
    for path in written:
        console.print(f"wrote: {path}", soft_wrap=True)
