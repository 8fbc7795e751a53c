"""Every recipe ships with its card; the cards' code runs in tests/test_docs.py."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import transposable.train.recipes as package
from transposable.train.recipes import RECIPES, DenseStart, DenseTail, Recipe

KINDS: list[type[Recipe]] = [*RECIPES.values(), DenseTail, DenseStart]
FOLDER = Path(package.__file__).parent
HEADINGS = ("What it is", "Use it", "Hyper-parameters", "What it costs", "Where it fails", "Who")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_card(kind: type[Recipe]) -> None:
    """In the package under test, which in CI is the installed wheel."""
    card = Path(inspect.getfile(kind)).with_name("README.md")
    text = card.read_text(encoding="utf-8")
    title, *rest = text.splitlines()
    assert title.startswith("# ")
    assert f"`{kind.name}`" in title
    assert tuple(line[3:] for line in rest if line.startswith("## ")) == HEADINGS
    assert "```python" in text
    assert "arXiv" in text.split("## Who")[1]


def test_every_folder_is_a_recipe() -> None:
    folders = {folder.name for folder in FOLDER.iterdir() if (folder / "__init__.py").exists()}
    assert folders == {Path(inspect.getfile(kind)).parent.name for kind in KINDS}
