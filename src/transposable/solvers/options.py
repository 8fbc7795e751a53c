"""Checks of solver options; every message names the solver, the option, the rule and the remedy."""

from __future__ import annotations

import math

from transposable.errors import SolverError


def check_flag(solver: str, option: str, value: object) -> None:
    """Raise SolverError unless the option is True or False."""
    if not isinstance(value, bool):
        raise SolverError(
            f"{solver}: received {option}={value!r}; it must be True or False; leave it out for "
            "the default"
        )


def check_count(solver: str, option: str, value: object, least: int) -> None:
    """Raise SolverError unless the option is an integer from ``least`` to 10^6."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000:
        raise SolverError(
            f"{solver}: received {option}={value!r}; it must be an integer from {least} to 1000000"
            "; leave it out for the default"
        )


def check_positive(solver: str, option: str, value: object, most: float) -> None:
    """Raise SolverError unless the option is a number above 0 and at most ``most``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or math.isnan(value) or not 0 < value <= most:  # type: ignore[arg-type, operator]
        raise SolverError(
            f"{solver}: received {option}={value!r}; it must be a number above 0 and at most "
            f"{most:g}; leave it out for the default"
        )
