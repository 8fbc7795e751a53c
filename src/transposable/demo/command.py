"""The click command of the demo."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from transposable.demo.encoder import MODEL, load_encoder
from transposable.demo.measure import BUDGET, measure
from transposable.demo.report import show
from transposable.demo.sentences import SENTENCES
from transposable.errors import FileError, SolverError, TransposableError

_WIDTH = 100


@click.command()
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the solvers.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=BUDGET,
    show_default=True,
    help="Leave out a solver that would take more seconds than this for the whole model.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write every figure to this file.",
)
def demo(threads: int | None, budget: float, json_file: Path | None) -> None:
    """Prune the sentence encoder all-MiniLM-L6-v2 to 2:4T and 4:8T, and measure what is left."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise FileError(
            f"demo: cannot write {json_file}, there is no directory {json_file.absolute().parent}; "
            "--json needs a file in an existing directory; create it or choose another one"
        )
    started = time.perf_counter()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    with console.status(f"loading {MODEL}") as status:
        encoder = load_encoder()
        results = measure(
            encoder,
            SENTENCES,
            threads=threads,
            budget=budget,
            note=status.update,
        )
    show(results, console)
    if json_file is not None:
        _write(json_file, json.dumps(results.as_dict(), indent=1) + "\n")
    console.print(f"{time.perf_counter() - started:.1f} s in all")
    if not results.ok:
        raise SolverError(
            "demo: a transposable mask violates its pattern or lacks its proof of optimality, see "
            "the tables above; this is a defect of the package, please report it with them"
        )


def main() -> None:
    """Run the demo as a program: one line on standard error and status 1 when it fails."""
    try:
        demo.main(prog_name="python -m transposable.demo")
    except TransposableError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _write(path: Path, text: str) -> None:
    """Write the whole file or leave what is there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(
            f"demo: cannot write {path} ({error.strerror}); --json needs a file in a writable "
            "directory; choose another one"
        ) from error
