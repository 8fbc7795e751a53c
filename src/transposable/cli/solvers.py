"""transposable solvers: which solvers there are, and what each promises."""

from __future__ import annotations

import click

from transposable.cli import show
from transposable.cli.app import EXIT_CODES, debug_option, json_option

_FORMS = {"row": "N:M", "transposable": "N:MT", "sequential": "N:MS", "unstructured": "P%"}


@click.command(name="solvers", epilog=EXIT_CODES, short_help="List the solvers and their patterns.")
@json_option
@debug_option
def command(as_json: bool) -> None:
    """List the solvers: the patterns each accepts, and whether its masks are optimal."""
    from transposable.solvers import SOLVERS

    if as_json:
        show.document(
            {
                "command": "solvers",
                "solvers": [
                    {
                        "name": name,
                        "patterns": [_FORMS[structure] for structure in solver.structures],
                        "optimal": solver.promises_optimal,
                        "summary": solver.summary,
                    }
                    for name, solver in SOLVERS.items()
                ],
            }
        )
        return
    rows = []
    for name, solver in SOLVERS.items():
        patterns = " ".join(_FORMS[structure] for structure in solver.structures)
        rows.append((name, patterns, "yes" if solver.promises_optimal else "no", solver.summary))
    show.print_table(show.console(), ["solver", "patterns", "optimal", "what it does"], rows)
