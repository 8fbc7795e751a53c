"""Suggested patterns: the rule, what it promises about random weights, and whole models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from transposable import Pattern, verify
from transposable.errors import PatternError, ScoresError
from transposable.prune import feasibility, prune_model, suggest_pattern, suggest_patterns


def sparse(share: float, rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """A Gaussian matrix, each weight zero with this probability."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, cols, generator=draw)
    return values * (torch.rand(rows, cols, generator=draw) >= share)


@given(
    zeros=st.integers(0, 400),
    confidence=st.floats(0.01, 1),
    m=st.integers(2, 64),
    transposable=st.booleans(),
)
def test_the_fewest_kept_that_are_likely_enough(
    zeros: int, confidence: float, m: int, transposable: bool
) -> None:
    weight = torch.ones(400)
    weight[:zeros] = 0
    found = suggest_pattern(weight, confidence, m, transposable)
    likely = [n for n in range(1, m) if feasibility(zeros / 400, n, m) >= confidence]
    structure = "transposable" if transposable else "row"
    assert found == (Pattern(likely[0], m, structure) if likely else None)


@pytest.mark.parametrize("transposable", [False, True])
@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
@pytest.mark.parametrize("m", [4, 8, 16])
def test_few_groups_of_a_random_weight_violate_it(share: float, m: int, transposable: bool) -> None:
    weight = sparse(share, 1024, 1024)
    found = suggest_pattern(weight, 0.95, m, transposable)
    assert found is not None
    for axis in verify(weight, found).axes:
        assert axis.violations / axis.groups < 0.055
    if found.n > 1:
        tighter = Pattern(found.n - 1, m, found.structure)
        assert all(a.violations / a.groups > 0.045 for a in verify(weight, tighter).axes)


@pytest.mark.parametrize(
    "weight",
    [
        np.where(np.arange(64) % 4 == 0, 1.0, 0.0),
        torch.where(torch.arange(64) % 4 == 0, 1.0, 0.0).half(),
        nn.Parameter(torch.where(torch.arange(64) % 4 == 0, 1.0, -0.0)),
    ],
    ids=["numpy", "float16", "parameter with negative zeros"],
)
def test_arrays_of_all_kinds(weight: Any) -> None:
    assert suggest_pattern(weight) == Pattern.parse("4:8")


def test_the_ends() -> None:
    assert suggest_pattern(torch.zeros(8, 8), m=4) == Pattern.parse("1:4")
    assert suggest_pattern(torch.randn(8, 8)) is None
    assert suggest_pattern(sparse(0.32, 256, 256)) == Pattern.parse("7:8")
    # Of groups of four a sixteenth has no zero at all, which is more than a twentieth.
    assert suggest_pattern(sparse(0.5, 256, 256), m=4) is None
    assert suggest_pattern(sparse(0.5, 256, 256), 0.9, m=4) == Pattern.parse("3:4")


def test_a_models_suggestions_are_patterns_for_prune_model() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 32))
    with torch.no_grad():
        model[0].weight.copy_(sparse(0.8, 32, 32))
        model[2].weight.copy_(sparse(0.6, 32, 32))
    dense = model[3].weight.detach().clone()
    found = suggest_patterns(model, 0.9)
    assert found == {name: suggest_pattern(model[int(name)].weight, 0.9) for name in ("0", "2")}
    report = prune_model(model, found, "magnitude")
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert all(layer.violated < 0.15 for layer in report.layers)
    assert torch.equal(model[3].weight, dense)
    assert list(suggest_patterns(model, 0.9, exclude="0")) == ["2"]


@pytest.mark.parametrize("confidence", [0, -1, 1.01, float("nan"), "high"])
def test_what_is_no_probability(confidence: Any) -> None:
    with pytest.raises(PatternError, match="confidence="):
        suggest_pattern(torch.zeros(8, 8), confidence)


def test_what_is_no_pattern_or_weight() -> None:
    with pytest.raises(PatternError, match="m=65"):
        suggest_pattern(torch.zeros(8, 8), m=65)
    with pytest.raises(ScoresError, match="list"):
        suggest_pattern([0.0, 1.0])
    with pytest.raises(ScoresError, match="int64"):
        suggest_pattern(torch.zeros(8, 8, dtype=torch.long))
    with pytest.raises(ScoresError, match="holds nothing"):
        suggest_pattern(torch.zeros(0, 8))
