"""The command line: one file per verb; the only place that prints."""

from __future__ import annotations

from transposable.cli.app import main

__all__ = ["main"]
