"""The README of the project shows the committed results."""

from __future__ import annotations

from pathlib import Path

from experiments.summary import with_summary

ROOT = Path(__file__).parents[2]


def test_the_readme_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_summary(text) == text
