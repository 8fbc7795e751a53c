"""Options that need checking before any work starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from transposable.pattern import Pattern
from transposable.solvers import SOLVERS, Auto, Solver, make_solver

if TYPE_CHECKING:
    import torch


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


def checked_device(name: str | None) -> torch.device:
    """The device of this name, the CPU by default.

    Raises:
        click.UsageError: if there is no such device, or torch does not see it.
    """
    import torch

    kind, _, number = (name or "cpu").partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise click.UsageError(f"--device: there is no {name!r}; give cpu, cuda, or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            seen = f"{count} of them, from cuda:0 on" if count else "none"
            raise click.UsageError(
                f"--device: torch {torch.__version__} cannot use {name!r}, it sees {seen}; leave "
                "--device out to run on the CPU, or install a torch that is built for this GPU"
            )
    return torch.device(name or "cpu")


def set_threads(threads: int | None) -> None:
    """Let torch use as many threads as the mask search."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
