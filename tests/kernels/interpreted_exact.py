"""The exact kernels by Triton's interpreter; run by test_interpreted.py in a process of its own."""

from __future__ import annotations

import interpreted  # noqa: F401  # first: it decides how kernels are defined
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checks

from benchmarks.families import HOSTILE
from score_families import FAMILIES


NAMES = list(FAMILIES)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_family_enumerated(n: int) -> None:
    checks.every_family("cpu", NAMES, n, 4, 2)


def test_tiles_of_4_by_the_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    checks.by_the_wave(monkeypatch)
    checks.every_family("cpu", NAMES[::5], 2, 4, 2)
    checks.nans("cpu", 3, 4)


@settings(max_examples=15, deadline=None)
@given(
    entries=st.lists(st.integers(-3, 3), min_size=16, max_size=16),
    n=st.integers(1, 3),
    exponent=st.integers(-20, 20),
)
def test_any_4x4_tile_of_small_integers(entries: list[int], n: int, exponent: int) -> None:
    """Every tie there is; by the oracle and the certificate."""
    scores = torch.tensor(entries, dtype=torch.float32).reshape(1, 4, 4) * 2.0**exponent
    kept, counters = checks.prove(scores, n, 4, f"{n}:4T")
    checks.assert_optimal(scores[0].numpy(), kept[0].numpy(), n, 4, "small integers")
    assert counters == [0, 0, 0]


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
