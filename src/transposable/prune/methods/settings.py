"""Settings of pruning methods: what they may be, and what is said of others."""

from __future__ import annotations

from typing import Any, Literal

from transposable.errors import MethodError

Ridge = float | Literal["auto"]
"""In units of the mean power of an input."""


def check_not_negative(method: str, **settings: Any) -> None:
    """Raise MethodError unless every setting is a finite number of at least 0."""
    for name, value in settings.items():
        if not _is_not_negative(value):
            raise MethodError(
                f"{method}: received {name}={value!r}; it is a finite number of at least 0"
            )


def check_count(method: str, least: int, **settings: Any) -> None:
    """Raise MethodError unless every setting is an integer of at least ``least``."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise MethodError(
                f"{method}: received {name}={value!r}; it is an integer of at least {least}"
            )


def check_ridge(method: str, ridge: Any) -> None:
    """Raise MethodError unless a ridge is "auto" or a finite number of at least 0."""
    if ridge != "auto" and not _is_not_negative(ridge):
        raise MethodError(
            f"{method}: received ridge={ridge!r}; it is 'auto' or a finite number of at least 0"
        )


def _is_not_negative(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < float("inf")
