"""ALPS against its publication, step by step, and what it must hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prune.problems import assert_holds, correlated, linear, make_problem
from transposable.errors import MethodError
from transposable.prune.least_squares import solve_supported
from transposable.prune.methods.adaprune import AdaPrune
from transposable.prune.methods.alps import ALPS
from transposable.prune.problem import LayerProblem


def published(problem: LayerProblem, rho: float = 0.1, iterations: int = 300) -> torch.Tensor:
    """The mask of the published procedure for one group, in the order of its own notation."""
    weight = problem.weight[0].T
    gram = problem.gram[0].clone()
    gram.diagonal().add_(0.01 * gram.diagonal().mean())
    norm = gram.diagonal().sqrt()
    gram = gram / norm / norm[:, None]
    b = b0 = weight * norm[:, None]
    wanted = gram @ b0

    def project(matrix: torch.Tensor) -> torch.Tensor:
        return problem.find_mask(matrix.T.square()[None])[0].T

    support = project(b)
    kept = int(support.sum())
    d = d0 = b * support
    v = torch.zeros_like(b)
    before, started = support, False
    for i in range(iterations):
        b = torch.linalg.solve(gram + rho * torch.eye(len(gram)), wanted - v + rho * d)
        d = (v + rho * b) / rho
        support = project(d)
        d = d * support
        v = v + rho * (b - d)
        if (i + 1) % 3:
            continue
        change = int((support != before).sum())
        before = support
        if change / kept > 0.1:
            started, rho = True, rho * 1.3
        elif change / kept > 0.005:
            started, rho = True, rho * 1.2
        elif change > 0.5:
            if started:
                rho *= 1.1
            else:
                rho, b, d, v = rho / 5, b0, d0, torch.zeros_like(b)
        elif started:
            break
        else:
            rho /= 5
        rho = min(rho, 1e6)
        if i >= 30 and change / kept < 0.0003:
            break
    return project(b).T[None]


@pytest.mark.parametrize("pattern", ["2:4T", "4:8T", "2:4", "30%"])
@pytest.mark.parametrize("penalty", [0.1, 100.0])
def test_finds_the_mask_of_the_publication(pattern: str, penalty: float) -> None:
    problem = linear(16, 24, 100, pattern, seed=1)
    pruned = ALPS(penalty=penalty).prune(problem)
    assert torch.equal(pruned.mask, published(problem, penalty))
    assert_holds(problem, pruned)


@pytest.mark.parametrize("iterations", [1, 4, 7])
def test_a_search_that_is_cut_short_takes_the_mask_of_the_free_weights(iterations: int) -> None:
    problem = linear(32, 48, 100, "2:4T", seed=2)
    pruned = ALPS(iterations=iterations).prune(problem)
    assert torch.equal(pruned.mask, published(problem, iterations=iterations))
    assert pruned.info["rounds"] == iterations


@pytest.mark.parametrize("penalty", [3.0, 5.0, 10.0, 20.0, 40.0])
def test_a_penalty_that_nearly_holds_the_mask_starts_anew(penalty: float) -> None:
    problem = linear(48, 64, 200, "2:4", seed=3)  # below 0.5 % is up to 7 weights of 1536
    pruned = ALPS(penalty=penalty, iterations=7).prune(problem)
    assert torch.equal(pruned.mask, published(problem, penalty, 7))


def test_weights_are_least_squares_on_the_mask() -> None:
    problem = linear(16, 24, 100, "4:8T")
    pruned = ALPS(ridge=1e-4).prune(problem)
    alone = problem.weight * pruned.mask
    wanted, _ = solve_supported(problem.gram, problem.cross, pruned.mask, alone, 1e-4)
    torch.testing.assert_close(pruned.weight, wanted)
    assert pruned.info["rounds"] % 3 == 0


@pytest.mark.parametrize("pattern", ["2:4T", "2:4", "25%"])
def test_finds_better_masks_than_scores_of_single_weights(pattern: str) -> None:
    problem = linear(64, 64, 500, pattern, seed=5)
    found = problem.relative_error(ALPS().prune(problem).weight)
    for scores in ("magnitude", "wanda", "activation", "obs"):
        assert found < problem.relative_error(AdaPrune(scores).prune(problem).weight)


@settings(max_examples=20, deadline=None)
@given(
    out=st.integers(1, 14),
    into=st.integers(1, 14),
    samples=st.integers(1, 30),
    pattern=st.sampled_from(["2:4T", "4:8T", "2:4", "60%"]),
    damping=st.sampled_from([0.0, 0.01]),
    keep_zeros=st.booleans(),
    centred=st.booleans(),
)
def test_holds_the_pattern_and_never_loses_to_its_mask_alone(
    out: int,
    into: int,
    samples: int,
    pattern: str,
    damping: float,
    keep_zeros: bool,
    centred: bool,
) -> None:
    problem = linear(out, into, samples, pattern, seed=samples, centred=centred)
    if keep_zeros:
        problem.allowed = problem.weight > -0.5
        problem.weight = problem.weight * problem.allowed
    pruned = ALPS(damping=damping, iterations=60).prune(problem)
    assert_holds(problem, pruned)
    alone = problem.weight * (pruned.mask & problem.allowed)
    assert bool((problem.error(pruned.weight) <= problem.error(alone)).all())


def test_a_grouped_convolution_with_a_dead_channel() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 16, 3, groups=2, padding=1).double()
    x = torch.randn(4, 12, 5, 5, dtype=torch.double).cumsum(1)
    x[:, 7] = 0
    problem = make_problem(layer, x, "2:4T")
    pruned = ALPS().prune(problem)
    assert_holds(problem, pruned)
    exact = AdaPrune().prune(problem)
    assert problem.relative_error(pruned.weight) < problem.relative_error(exact.weight)


def test_targets_of_other_inputs_are_aimed_at() -> None:
    draw = torch.Generator().manual_seed(6)
    x = correlated(80, 16, draw)
    layer = nn.Linear(16, 8).double()
    wanted = x @ torch.randn(16, 8, dtype=torch.double, generator=draw)
    problem = make_problem(layer, x, wanted=wanted)
    assert problem.relative_error(ALPS().prune(problem).weight) < 0.5
    assert problem.relative_error(problem.weight) > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"damping": -1.0},
        {"penalty": 0.0},
        {"penalty": math.inf},
        {"iterations": 0},
        {"every": 0},
        {"ridge": math.nan},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(settings))):
        ALPS(**settings)
