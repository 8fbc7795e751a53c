"""The twins of repair and local search in torch against the native solvers, entry for entry."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_checks import DTYPES, SOLVERS, batch_of, by_twins, native

from score_families import FAMILIES
from transposable import Greedy, Pattern, TwoApprox
from transposable.problem import Problem


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*FAMILIES, "|ties|", "-|gaussian|"]),
    data=st.data(),
    m=st.sampled_from([4, 4, 8]),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    solver=st.sampled_from(SOLVERS),
    magnitude=st.booleans(),
)
def test_the_mask_is_the_native_one(
    name: str,
    data: st.DataObject,
    m: int,
    seed: int,
    dtype: torch.dtype,
    solver: Greedy | TwoApprox,
    magnitude: bool,
) -> None:
    n = data.draw(st.integers(1, m - 1))
    rows, cols = (data.draw(st.integers(1, 2 * m + 1)) for _ in range(2))
    scores = batch_of(name, rows, cols, seed, dtype)
    problem = Problem(scores, Pattern(n, m, "transposable"), magnitude, 1)
    assert torch.equal(by_twins(solver, problem), native(solver, problem))
