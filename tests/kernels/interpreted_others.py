"""Walks, plain N:M and the ways to all kernels, interpreted; run by test_interpreted.py."""

from __future__ import annotations

import interpreted  # noqa: F401  # first: it decides how kernels are defined
import pytest

import other_checks


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 8)], ids=str)
def test_against_twins(n: int, m: int) -> None:
    other_checks.against_twins("cpu", n, m)


def test_public_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    other_checks.public_functions("cpu", monkeypatch)


def test_filled_in_place() -> None:
    other_checks.filled_in_place("cpu")


def test_refreshed() -> None:
    other_checks.refreshed("cpu")


def test_by_way_of_the_host() -> None:
    other_checks.by_way_of_the_host("cpu")
