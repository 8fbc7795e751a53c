"""Repair and local search by Triton's interpreter; run by test_interpreted.py."""

from __future__ import annotations

import interpreted  # noqa: F401  # first: it decides how kernels are defined
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import search_checks
from score_families import FAMILIES
from transposable import Greedy, Pattern, TwoApprox
from transposable.problem import Problem

NAMES = [*FAMILIES, "-|gaussian|"]
FEW = (Greedy(sweeps=1), TwoApprox(repair=True))


def test_families_in_tiles_of_4() -> None:
    search_checks.families("cpu", NAMES[::7], 2, 4)


@pytest.mark.parametrize(
    ("names", "n", "m"),
    [(NAMES[1::16], 3, 8), (["ties"], 8, 16), (["gaussian"], 16, 32)],
    ids=["3:8", "8:16", "16:32"],
)
def test_families(names: list[str], n: int, m: int) -> None:
    search_checks.families("cpu", names, n, m, FEW)


def test_cropped() -> None:
    search_checks.cropped("cpu", 2, 4)


def test_strides_nans_and_odd_masks() -> None:
    search_checks.strides("cpu", 2, 4)
    search_checks.nans("cpu", 2, 4)
    search_checks.odd_masks("cpu", 2, 4)
    search_checks.empty("cpu")


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    n=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(search_checks.DTYPES),
    solver=st.sampled_from(search_checks.SOLVERS),
    magnitude=st.booleans(),
)
def test_any(
    name: str,
    n: int,
    shape: tuple[int, int],
    seed: int,
    dtype: torch.dtype,
    solver: Greedy | TwoApprox,
    magnitude: bool,
) -> None:
    scores = search_checks.batch_of(name, *shape, seed, dtype)
    problem = Problem(scores, Pattern(n, 4, "transposable"), magnitude, 1)
    search_checks.same_as_native(solver, problem, name)
