"""What the commands share: reading a pattern, writing a file."""

from __future__ import annotations

from pathlib import Path

from transposable import Pattern
from transposable.export.atomic import Transaction


def transposable_pattern(text: str) -> Pattern:
    """ "4:8" is read as "4:8T": only transposable patterns are measured here.

    Raises:
        PatternError: if the text is no pattern.
    """
    pattern = Pattern.parse(text.strip())
    return Pattern(pattern.n, pattern.m, "transposable")


def write(path: Path, text: str) -> None:
    """All or nothing: an interrupted run leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Transaction() as outputs:
        outputs.file(path).write(text.encode())
