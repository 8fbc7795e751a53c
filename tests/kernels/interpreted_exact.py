"""The exact kernels by Triton's interpreter; run by test_interpreted.py in a process of its own."""

from __future__ import annotations

import interpreted  # noqa: F401  # first: it decides how kernels are defined
import pytest

import checks

from benchmarks.families import HOSTILE
from score_families import FAMILIES


NAMES = list(FAMILIES)


def test_every_family() -> None:
    checks.every_family("cpu", NAMES, 2, 4, 2)


def test_families_in_tiles_of_8() -> None:
    checks.every_family("cpu", NAMES[::2], 3, 8, 1)


def test_families_in_tiles_of_16() -> None:
    checks.every_family("cpu", ["ties", "row offsets"], 8, 16, 1)


def test_tiles_of_32() -> None:
    checks.every_family("cpu", ["gaussian"], 16, 32, 1)


@pytest.mark.parametrize(("name", "n", "m"), [("ties", 2, 4), ("gaussian", 5, 8)], ids=str)
def test_ragged(name: str, n: int, m: int) -> None:
    checks.ragged("cpu", name, n, m)


def test_dtypes() -> None:
    checks.dtypes("cpu", 2, 4)


def test_strides() -> None:
    checks.strides("cpu", 2, 4)


def test_nans() -> None:
    checks.nans("cpu", 2, 4)


def test_empty() -> None:
    checks.empty("cpu")


def test_families_are_those_of_the_cpu_tests() -> None:
    assert set(HOSTILE) <= set(NAMES)
