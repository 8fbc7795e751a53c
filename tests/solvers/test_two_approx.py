"""The paper's 2-approximation: its example, its bound, its repair."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from score_families import make_scores
from strategies import NON_NEGATIVE, WALKED, scores
from transposable import Exact, Reference, SolverError, TwoApprox, solve

EPSILON = 2.0**-10


def figure_a1() -> torch.Tensor:
    """A 4 x 4 block where one entry of each row and column has to go, and the walk prunes seven.

    The corner is the lightest entry, then come the others of its row and column, then those of the
    diagonal; all others are heavy. The corner serves the first row and column, and each of the next
    six entries one more row or column.
    """
    block = torch.full((4, 4), 10.0)
    block.diagonal().fill_(1.0)
    block[0, 1:] = block[1:, 0] = 1 - EPSILON
    block[0, 0] = 1 - 2 * EPSILON
    return block


def test_the_example_of_the_paper_prunes_seven_quarters_of_the_optimum() -> None:
    block = figure_a1()
    pruned = ~solve(block, "3:4T", TwoApprox()).mask.tensor
    cross = torch.zeros(4, 4, dtype=torch.bool)
    cross[0] = cross[:, 0] = True
    assert int(cross.sum()) == 7
    assert torch.equal(pruned, cross)
    best = solve(block, "3:4T", Exact())
    assert torch.equal(~best.mask.tensor, torch.eye(4, dtype=torch.bool))
    ratio = (block[pruned].sum() / block.trace()).item()
    assert ratio == pytest.approx(7 / 4, rel=2 * EPSILON)


@settings(max_examples=120)
@given(
    matrix=scores(9, NON_NEGATIVE),
    pattern=st.sampled_from(["1:2T", "1:4T", "2:4T", "3:4T", "2:5T"]),
)
def test_less_than_twice_the_optimum_is_pruned(matrix: torch.Tensor, pattern: str) -> None:
    """W(P) < 2 W*, and W(P) = 0 where W* = 0; ragged edges included."""
    total = matrix.double().sum().item()
    solution = solve(matrix, pattern, TwoApprox())
    pruned = matrix.double()[~solution.mask.tensor].sum().item()
    best = solve(matrix, pattern, Reference()).objective
    least = total - best
    rounding = 1e-12 * total
    assert pruned <= 2 * least + rounding
    assert best <= solution.bound + rounding
    if pruned > rounding:
        assert pruned < 2 * least + rounding
    else:
        assert solution.gap <= 1e-12


@settings(max_examples=30)
@given(matrix=scores(11, NON_NEGATIVE), pattern=st.sampled_from(["2:4T", "3:7T"]))
def test_repair_keeps_the_bound(matrix: torch.Tensor, pattern: str) -> None:
    published, repaired = (solve(matrix, pattern, TwoApprox(repair=r)) for r in (False, True))
    assert repaired.bound == published.bound


def naive(block: list[list[float]], n: int) -> set[tuple[int, int]]:
    """Algorithm 1 word by word: the pruned entries of one block."""
    rows, cols = len(block), len(block[0])
    edges = sorted((block[i][j], i, j) for i in range(rows) for j in range(cols))
    pruned: set[tuple[int, int]] = set()
    for _, i, j in edges:
        in_row = sum(1 for r, _ in pruned if r == i)
        in_col = sum(1 for _, c in pruned if c == j)
        if in_row < cols - n or in_col < rows - n:
            pruned.add((i, j))
    return pruned


@settings(max_examples=60)
@given(
    family=st.sampled_from(WALKED),
    m=st.integers(2, 9),
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_walk_is_that_of_the_paper(
    family: str, m: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    n = data.draw(st.integers(1, m - 1))
    block = make_scores(family, m, m, data.draw(st.integers(0, 10**6))).to(dtype)
    kept = solve(block, f"{n}:{m}T", TwoApprox()).mask.tensor
    expected = naive(block.double().tolist(), n)
    assert {(i, j) for i, j in (~kept).nonzero().tolist()} == expected


def test_doubles_are_not_rounded_to_float() -> None:
    """The lightest entry differs from the others by less than a float can hold."""
    block = torch.ones(2, 2, dtype=torch.float64)
    block[0, 1] -= 2.0**-40
    block[1, 0] -= 2.0**-41
    kept = solve(block, "1:2T", TwoApprox()).mask.tensor
    assert kept.tolist() == [[True, False], [False, True]]


def test_negative_scores_have_no_bound() -> None:
    solution = solve(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), "1:2T", TwoApprox())
    assert math.isinf(solution.bound)
    assert math.isinf(solution.gap)


def test_density_on_gaussian_tiles() -> None:
    """The published ascending walk prunes too much: 0.40 instead of 0.50 at 4:8T."""
    matrix = make_scores("|gaussian|", 256, 256, 1)
    assert solve(matrix, "4:8T", TwoApprox()).mask.density == pytest.approx(0.405, abs=0.01)
    assert solve(matrix, "4:8T", TwoApprox(repair=True)).mask.density == 0.5


@pytest.mark.parametrize("repair", [1, None, "yes"])
def test_a_wrong_option_is_an_error(repair: object) -> None:
    with pytest.raises(SolverError, match=r"two_approx: received repair=.*True or False"):
        TwoApprox(repair=repair)  # type: ignore[arg-type]
