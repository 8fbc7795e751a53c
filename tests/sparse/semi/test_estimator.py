"""The 2:4 estimate of a gradient: two of four, unbiased, and of the variance that it promises."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.sparse.cases import generator
from transposable.errors import SparseFormatError
from transposable.sparse.semi import estimate
from transposable.sparse.semi.estimator import inclusion, variance

GROUPS = {
    "equal": [1.0, 1.0, 1.0, 1.0],
    "spread": [4.0, -3.0, 2.0, -1.0],
    "one rules": [100.0, 1.0, -2.0, 3.0],
    "on the edge": [6.0, 1.0, 2.0, 3.0],
    "two": [0.0, 5.0, 0.0, -0.1],
    "three": [1.0, 0.0, 1.0, 1.0],
    "one": [0.0, 0.0, -7.0, 0.0],
    "none": [0.0, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("name", GROUPS)
def test_unbiased_and_of_the_promised_variance(name: str) -> None:
    """200,000 draws: mean and variance within 5 standard errors of what they should be."""
    draws = 200_000
    group = torch.tensor(GROUPS[name])
    drawn = estimate(group.repeat(1).reshape(4, 1).expand(4, draws), generator(0)).double()
    kept = (drawn != 0).sum(0)
    assert int(kept.max()) <= 2
    p = inclusion(group).double()
    each = group.double().square() * (1 / p.where(p > 0, 1.0) - 1)
    error = (drawn.mean(1) - group).abs()
    assert (error <= 5 * (each / draws).sqrt() + 1e-6 * group.abs()).all()
    # The square of an entry is (a / p)^2 with probability p: its own spread is known too.
    squares = (drawn - group.double()[:, None]).square().sum(0)
    spread = squares.std() / draws**0.5
    promised = variance(group).double()
    assert (squares.mean() - promised).abs() <= 5 * spread + 1e-6 * promised + 1e-9
    torch.testing.assert_close(each.sum(), promised, rtol=1e-5, atol=1e-6)


@given(
    st.lists(
        st.floats(-1e4, 1e4, width=32).filter(lambda a: a == 0 or abs(a) > 1e-4),
        min_size=4,
        max_size=4,
    )
)
def test_no_other_probabilities_have_less_variance(group: list[float]) -> None:
    """Against a search over all (p, 2 - sum p) on a grid, and the conditions of the optimum."""
    a = torch.tensor(group)
    p = inclusion(a).double()
    assert (p >= 0).all()
    assert (p <= 1).all()
    nonzero = int((a != 0).sum())
    assert abs(float(p.sum()) - min(2, nonzero)) < 1e-5
    assert ((p > 0) == (a != 0)).all()
    if nonzero <= 2:
        assert torch.equal(p, (a != 0).double())
        return
    # |a| / p is one number where p < 1, and no smaller where p = 1.
    level = (a.abs().double() / p)[p < 1 - 1e-6]
    level = level[level.isfinite() & (level > 0)]
    assert (level - level.mean()).abs().max() <= 1e-4 * level.mean()
    assert (a.abs().double()[p > 1 - 1e-6] >= level.mean() * (1 - 1e-4)).all()
    best = float(variance(a))
    grid = torch.arange(1, 21).double() / 20
    sizes = a.abs().double()
    others = [i for i in range(4) if a[i] != 0]
    for choice in itertools.product(grid[3::4], repeat=len(others) - 1):
        last = 2 - sum(choice)
        if 0 < last <= 1:
            q = torch.tensor([*choice, last])
            assert float((sizes[others].square() * (1 / q - 1)).sum()) >= best * (1 - 1e-4) - 1e-6


def test_two_of_four_and_the_sign() -> None:
    gradient = torch.randn(64, 33, generator=generator(1))
    drawn = estimate(gradient, generator(2))
    counts = (drawn != 0).reshape(16, 4, 33).sum(1)
    assert (counts == 2).all()
    kept = drawn != 0
    assert (drawn[kept].sign() == gradient[kept].sign()).all()
    assert (drawn[kept].abs() >= gradient[kept].abs() * (1 - 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_seeds(dtype: torch.dtype) -> None:
    gradient = torch.randn(8, 5, generator=generator(1)).to(dtype)
    one, same, other = (estimate(gradient, generator(s)) for s in (3, 3, 4))
    assert one.dtype == dtype
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_extremes() -> None:
    huge, tiny = torch.full((4, 1), 3e38), torch.full((4, 1), 1e-38)
    assert estimate(tiny).isfinite().all()
    assert not estimate(huge).isnan().any()  # 6e38 is no float32: it is infinite, not nothing
    bad = torch.tensor([[1.0], [float("nan")], [2.0], [3.0], [1.0], [2.0], [float("inf")], [0.0]])
    drawn = estimate(bad).reshape(2, 4)
    assert (drawn.isnan().sum(1) == 2).all()
    assert estimate(torch.zeros(0, 5)).shape == (0, 5)
    assert estimate(torch.zeros(4, 0)).shape == (4, 0)
    for wrong in (torch.zeros(5, 4), torch.zeros(4)):
        with pytest.raises(SparseFormatError, match="multiple of 4 tokens"):
            estimate(wrong)
