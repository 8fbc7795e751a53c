"""Hubara et al. 2021 item by item: measure what is missing, then write docs/paper.md.

python -m experiments.paper [--parts NAME,...] [--data DIR] [--minutes N]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from experiments.paper import (
    diversity,
    flow,
    overhead,
    page,
    pairs,
    retention,
    transition,
    two_approx,
)
from experiments.paper.common import Session

MEASURED: Final[dict[str, Callable[[Session], None]]] = {
    diversity.ITEM: diversity.run,
    retention.ITEM: retention.run,
    flow.ITEM: flow.run,
    two_approx.ITEM: two_approx.run,
    overhead.ITEM: overhead.run,
    transition.ITEM: transition.run,
    pairs.ITEM: pairs.run,
}
PAGE: Final = "page"
PARTS: Final = (*MEASURED, PAGE)


@click.command()
@click.option(
    "--parts",
    default="",
    metavar="NAME,...",
    help=f"Some of {', '.join(PARTS)}; measured anew even if there are results. [default: what "
    "has no results yet, and page]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("../shared/data"),
    show_default=True,
    help="Folder with cifar10/, models/ and stsb/.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/paper"),
    show_default=True,
    help="Finished and unfinished runs.",
)
@click.option("--threads", default=1, show_default=True)
@click.option(
    "--minutes", type=float, help="Start no further run after so many; the next call does."
)
def main(parts: str, data: Path, work: Path, threads: int, minutes: float | None) -> None:
    """Measure the paper's claims, draw the figures and write docs/paper.md."""
    chosen = [part.strip() for part in parts.split(",") if part.strip()]
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise click.UsageError(f"--parts {', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    session = Session(data, work, threads=threads, minutes=minutes)
    for name, measure in MEASURED.items():
        if name in chosen or (not chosen and not session.done(name)):
            measure(session)
            print(f"paper: {name} measured", flush=True)
    if not chosen or PAGE in chosen:
        page.write()
        print("paper: docs/paper.md written", flush=True)
