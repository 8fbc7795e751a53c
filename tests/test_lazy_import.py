"""The package root loads nothing until a name is used, and then the right thing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import transposable


@pytest.mark.parametrize("name", transposable.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(transposable, name)
    assert name in dir(transposable)
    assert name == "__version__" or value.__module__.startswith("transposable.")


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="nosuch"):
        transposable.nosuch  # noqa: B018


def test_nothing_is_loaded_by_the_import() -> None:
    script = (
        "import sys, transposable\n"
        "assert 'torch' not in sys.modules\n"
        "from transposable import *\n"
        "print(find_mask.__name__, Pattern.parse('2:4T'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == "find_mask 2:4T\n"
