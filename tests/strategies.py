"""Hypothesis strategies for matrices of scores."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

FAMILIES = (
    "gaussian",
    "signed",
    "negative",
    "grid",
    "zeros",
    "equal",
    "half zeros",
    "one hot",
    "huge",
    "tiny",
    "outlier",
    "row scales",
    "column offsets",
    "ulp",
)
NON_NEGATIVE = tuple(f for f in FAMILIES if f not in ("signed", "negative"))


def make_scores(family: str, rows: int, cols: int, seed: int) -> torch.Tensor:
    """Scores [rows, cols] in float32 of a family that has found, or could find, bugs."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(rows, cols, generator=generator)
    small = torch.randint(0, 4, (rows, cols), generator=generator).float()
    positive = gaussian.abs()
    match family:
        case "gaussian":
            return positive
        case "signed":
            return gaussian
        case "negative":
            return -positive
        case "grid":
            return small / 2
        case "zeros":
            return torch.zeros(rows, cols)
        case "equal":
            return torch.full((rows, cols), 0.7)
        case "half zeros":
            return positive * (small > 1)
        case "one hot":
            return (positive == positive.amax(1, keepdim=True)).float() if cols else positive
        case "huge":
            return (positive * 1e37).clamp(max=3e38)
        case "tiny":
            return positive * 1e-42
        case "outlier":
            scores = positive.clone()
            scores[:1, :1] = 1e8
            return scores
        case "row scales":
            return positive * 10.0 ** torch.arange(-10.0, rows - 10).remainder(9).unsqueeze(1)
        case "column offsets":
            return positive + 100 * torch.arange(float(cols)).remainder(7)
        case "ulp":
            return 1 + small * 2.0**-23
    raise ValueError(family)


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
