"""Hypothesis strategies for matrices of scores."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from benchmarks.families import HOSTILE
from score_families import make_scores

NON_NEGATIVE = tuple(f"|{name}|" for name in HOSTILE)
FAMILIES = (*HOSTILE, *NON_NEGATIVE, "-|gaussian|")
WALKED = ("|gaussian|", "|ties|", "gaussian", "zeros", "|outlier 1e8|", "|denormals|")
"""For walks in order of the scores, against plain Python."""

SEEDS = st.integers(0, 2**31)


def sides(most: int) -> st.SearchStrategy[int]:
    """Lengths with 0 and 1 well represented."""
    return st.one_of(st.sampled_from([0, 1]), st.integers(2, most))


def scores(
    most: int, families: tuple[str, ...] = FAMILIES, *, least: int | None = None
) -> st.SearchStrategy[torch.Tensor]:
    """Scores of any family and shape up to most x most; from ``least`` on if given."""
    side = sides(most) if least is None else st.integers(least, most)
    return st.builds(make_scores, st.sampled_from(families), side, side, SEEDS)


def tiles(
    m: int, families: tuple[str, ...] = FAMILIES, *, down: int = 2, across: int = 3
) -> st.SearchStrategy[torch.Tensor]:
    """Scores whose shape is a whole number of m x m tiles."""
    return st.builds(
        make_scores, st.sampled_from(families), st.just(down * m), st.just(across * m), SEEDS
    )


def distinct(rows: int, cols: int) -> st.SearchStrategy[torch.Tensor]:
    """Non-negative scores without ties: a permutation of 1, 2, ..., whatever the dtype."""

    def build(seed: int) -> torch.Tensor:
        order = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(seed))
        return (order + 1).float().reshape(rows, cols)

    return st.builds(build, SEEDS)
