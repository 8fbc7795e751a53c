"""Every example in a docstring is run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import transposable

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Modules of kernels import it, and nothing imports them before a tensor on a GPU is solved."""

NAMES = [
    "transposable",
    *(
        found.name
        for found in pkgutil.walk_packages(transposable.__path__, "transposable.")
        if not found.name.endswith(("._core", ".__main__"))
        if HAS_TRITON or not found.name.endswith((".device", ".fixed_point"))
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is"
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in NAMES]
    assert sum(len(test.examples) for m in modules for test in finder.find(m)) > 20
