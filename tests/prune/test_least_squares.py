"""Least squares on a support, by factorising and by iterating, against torch.linalg.lstsq."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prune.problems import assert_holds, correlated, linear, make_problem
from transposable.prune import conjugate
from transposable.prune.conjugate import solve_conjugate
from transposable.prune.least_squares import Algorithm, cheaper, solve_supported
from transposable.prune.methods.adaprune import AdaPrune

ALGORITHMS: tuple[Algorithm, ...] = ("cholesky", "conjugate")
TIGHT = 1e-12


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(
    gram: torch.Tensor, cross: torch.Tensor, weight: torch.Tensor, power: torch.Tensor
) -> torch.Tensor:
    return (weight @ gram * weight).sum(-1) - 2 * (weight * cross).sum(-1) + power


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_equals_lstsq_of_every_row(algorithm: Algorithm, ridge: float) -> None:
    draw = draws(1)
    x = correlated(60, 20, draw)
    y = torch.randn(60, 7, generator=draw, dtype=torch.double)
    support = torch.rand(1, 7, 20, generator=draw) < 0.5
    support[0, 3] = False
    start = torch.randn(1, 7, 20, generator=draw, dtype=torch.double)
    gram, cross = (x.T @ x)[None], (y.T @ x)[None]
    found, info = solve_supported(gram, cross, support, start, ridge, algorithm, TIGHT)
    pull = (ridge * gram.diagonal(dim1=1, dim2=2).mean()).sqrt()
    for row in range(7):
        at = support[0, row]
        stacked = torch.cat([x[:, at], pull * torch.eye(int(at.sum()), dtype=torch.double)])
        right = torch.cat([y[:, row], pull * start[0, row, at]])
        wanted = torch.linalg.lstsq(stacked, right[:, None]).solution.squeeze(1)
        torch.testing.assert_close(found[0, row, at], wanted, rtol=1e-7, atol=1e-9)
    assert bool((found[~support] == 0).all())
    assert info["algorithm"] == algorithm
    assert info["ridge"] == ridge


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 40),
    samples=st.integers(1, 60),
    groups=st.integers(1, 2),
    ridge=st.sampled_from([0.0, 1e-6, 1e-2]),
    dead=st.booleans(),
    seed=st.integers(0, 10_000),
)
@example(rows=1, cols=37, samples=2, groups=2, ridge=0.0, dead=False, seed=0)
def test_iterating_agrees_with_factorising(
    rows: int, cols: int, samples: int, groups: int, ridge: float, dead: bool, seed: int
) -> None:
    draw = draws(seed)
    x = torch.stack([correlated(samples, cols, draw) for _ in range(groups)])
    if dead:
        x[:, :, cols // 2] = 0
    y = torch.randn(groups, samples, rows, generator=draw, dtype=torch.double)
    gram, cross, power = x.mT @ x, y.mT @ x, y.square().sum(1)
    support = torch.rand(groups, rows, cols, generator=draw) < 0.6
    start = torch.randn(groups, rows, cols, generator=draw, dtype=torch.double) * support
    before = objective(gram, cross, start, power)
    errors = {}
    for algorithm in ALGORITHMS:
        found, info = solve_supported(gram, cross, support, start, ridge, algorithm, 1e-9)
        assert bool((found[~support] == 0).all())
        # The ridge is part of what is minimised, and it vanishes at the start.
        unit = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None]
        errors[algorithm] = objective(gram, cross, found, power) + unit * (
            found - start
        ).square().sum(-1)
        assert bool((errors[algorithm] <= before + 1e-7 * power).all())
        if dead:
            at = support[..., cols // 2]
            torch.testing.assert_close(found[..., cols // 2][at], start[..., cols // 2][at])
        if algorithm == "conjugate":
            assert info["residual"] < 1e-3
            assert info["iterations"] <= conjugate.LIMIT
    torch.testing.assert_close(
        errors["cholesky"], errors["conjugate"], rtol=1e-4, atol=float(1e-6 * power.max())
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_repeated_inputs_are_solved_as_well_as_one_of_them(algorithm: Algorithm) -> None:
    draw = draws(2)
    half = correlated(40, 6, draw)
    x = torch.cat([half, half], 1)
    y = torch.randn(40, 3, generator=draw, dtype=torch.double)
    everything = torch.ones(1, 3, 12, dtype=torch.bool)
    start = torch.zeros(1, 3, 12, dtype=torch.double)
    gram, cross = (x.T @ x)[None], (y.T @ x)[None]
    found, _ = solve_supported(gram, cross, everything, start, 0.0, algorithm, 1e-10)
    best = torch.linalg.lstsq(half, y).solution
    wanted = (y - half @ best).square().sum(0)
    error = (y - x @ found[0].T).square().sum(0)
    torch.testing.assert_close(error, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inputs_that_never_were_other_than_zero_keep_their_weights(algorithm: Algorithm) -> None:
    start = torch.randn(1, 3, 8, dtype=torch.double, generator=draws(3))
    support = torch.rand(1, 3, 8, generator=draws(4)) < 0.5
    zeros = torch.zeros(1, 8, 8, dtype=torch.double)
    found, _ = solve_supported(zeros, torch.zeros_like(start), support, start, 0.0, algorithm)
    assert torch.equal(found, torch.where(support, start, 0))


def test_a_row_that_starts_at_its_best_takes_no_iteration() -> None:
    x = correlated(30, 8, draws(5))
    weight = torch.randn(4, 8, dtype=torch.double, generator=draws(6))
    gram = x.T @ x
    found = solve_conjugate(gram, weight @ gram, torch.ones(4, 8, dtype=torch.bool), weight, 0.1)
    assert found.iterations == 0
    assert torch.equal(found.weight, weight)


def test_a_limit_is_kept_and_the_residual_says_so() -> None:
    x = correlated(300, 120, draws(7))
    y = torch.randn(300, 5, dtype=torch.double, generator=draws(8))
    support = torch.rand(5, 120, generator=draws(9)) < 0.5
    start = torch.zeros(5, 120, dtype=torch.double)
    gram, cross = x.T @ x, y.T @ x
    hasty = solve_conjugate(gram, cross, support, start, limit=3)
    patient = solve_conjugate(gram, cross, support, start)
    assert hasty.iterations == 3
    assert hasty.residual > 1e-5 >= patient.residual
    power = y.square().sum(0)
    best = objective(gram, cross, patient.weight, power)
    middle = objective(gram, cross, hasty.weight, power)
    assert bool((best < middle).all())
    assert bool((middle < objective(gram, cross, start, power)).all())


def test_rows_in_parts_give_what_they_give_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated(90, 30, draws(10))
    y = torch.randn(90, 11, dtype=torch.double, generator=draws(11))
    support = torch.rand(11, 30, generator=draws(12)) < 0.5
    start = torch.zeros(11, 30, dtype=torch.double)
    at_once = solve_conjugate(x.T @ x, y.T @ x, support, start, tolerance=1e-10)
    monkeypatch.setattr(conjugate, "CHUNK", 4 * 30)
    in_parts = solve_conjugate(x.T @ x, y.T @ x, support, start, tolerance=1e-10)
    torch.testing.assert_close(at_once.weight, in_parts.weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_units_of_inputs_and_outputs_do_not_matter(factor: float) -> None:
    x = correlated(90, 30, draws(13))
    y = torch.randn(90, 6, dtype=torch.double, generator=draws(14))
    support = torch.rand(6, 30, generator=draws(15)) < 0.5
    start = torch.zeros(6, 30, dtype=torch.double)
    plain = solve_conjugate(x.T @ x, y.T @ x, support, start, 0.0, 1e-10)
    units = torch.logspace(-3, 3, 30, dtype=torch.double) * factor
    far = x * units
    scaled = solve_conjugate(far.T @ far, y.T @ far, support, start, 0.0, 1e-10)
    torch.testing.assert_close(scaled.weight * units, plain.weight, rtol=1e-5, atol=1e-7)


def test_wide_supports_are_iterated_on_and_narrow_ones_factorised() -> None:
    narrow, wide = torch.ones(1, 4, 600).bool(), torch.ones(1, 4, 4000).bool()
    assert (cheaper(narrow), cheaper(wide)) == ("cholesky", "conjugate")
    wide[:, :, ::2] = False
    assert cheaper(wide) == "conjugate"
    wide[:, :, ::3] = False
    assert cheaper(wide[:, :, :2000]) == "cholesky"


@settings(max_examples=25, deadline=None)
@given(
    out=st.integers(1, 21),
    into=st.integers(1, 21),
    samples=st.integers(1, 40),
    pattern=st.sampled_from(["2:4T", "4:8T", "2:4", "1:4S", "30%"]),
    scores=st.sampled_from(["magnitude", "wanda", "activation", "obs"]),
    centred=st.booleans(),
)
def test_adaprune_never_loses_to_its_mask_alone(
    out: int, into: int, samples: int, pattern: str, scores: str, centred: bool
) -> None:
    problem = linear(out, into, samples, pattern, seed=out * into, centred=centred)
    pruned = AdaPrune(scores).prune(problem)
    assert_holds(problem, pruned)
    alone = problem.weight * pruned.mask
    assert bool((problem.error(pruned.weight) <= problem.error(alone)).all())


@pytest.mark.parametrize("centred", [False, True])
def test_a_layer_whose_weights_are_all_kept_stays_as_it_is(centred: bool) -> None:
    problem = linear(6, 9, 50, centred=centred)
    everything = torch.ones_like(problem.allowed)
    for algorithm in ALGORITHMS:
        found, _ = solve_supported(
            problem.gram, problem.cross, everything, problem.weight, 1e-4, algorithm
        )
        torch.testing.assert_close(found, problem.weight, rtol=1e-9, atol=1e-9)


def test_outputs_swapped_within_tiles_are_pruned_alike() -> None:
    problem = linear(8, 8, 50)
    order = torch.tensor([2, 0, 3, 1, 7, 6, 4, 5])
    swapped = linear(8, 8, 50)
    swapped.weight, swapped.cross = problem.weight[:, order], problem.cross[:, order]
    first, second = AdaPrune().prune(problem), AdaPrune().prune(swapped)
    assert torch.equal(first.mask[:, order], second.mask)
    torch.testing.assert_close(first.weight[:, order], second.weight)


def test_scaled_inputs_and_weights_scale_the_result() -> None:
    draw = draws(20)
    x = correlated(50, 12, draw)
    weight = torch.randn(8, 12, dtype=torch.double, generator=draw)
    results = []
    for scale_x, scale_w in ((1.0, 1.0), (1e3, 1e-4)):
        layer = torch.nn.Linear(12, 8, bias=False).double()
        layer.weight.data = weight * scale_w
        pruned = AdaPrune().prune(make_problem(layer, x * scale_x))
        results.append((pruned.mask, pruned.weight / scale_w))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
