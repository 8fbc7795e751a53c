"""Options that need checking before any work starts."""

from __future__ import annotations

import click

from transposable.pattern import Pattern
from transposable.solvers import SOLVERS, Auto, Solver, make_solver


def checked_solver(name: str, pattern: str) -> Solver:
    """The solver of this name for this pattern.

    Raises:
        click.UsageError: if there is no such solver, or it does not find masks of the pattern.
        PatternError: if the pattern is none.
    """
    parsed = Pattern.parse(pattern)
    key = name.replace("-", "_")
    if key not in SOLVERS:
        raise click.UsageError(f"--solver: there is no {name!r}; choose from {', '.join(SOLVERS)}")
    solver = make_solver(key)
    if isinstance(solver, Auto):
        solver = solver.choose(parsed)
    if not solver.accepts(parsed):
        fitting = [key for key in SOLVERS if make_solver(key).accepts(parsed)]
        raise click.UsageError(
            f"--solver: {name!r} does not find masks of pattern {parsed}; use {', '.join(fitting)}"
        )
    return solver


def set_threads(threads: int | None) -> None:
    """Let torch use as many threads as the mask search."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
