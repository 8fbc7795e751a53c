"""SparseGPT against optimal brain surgery by its textbook, one explicit inverse at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prune.problems import assert_holds, correlated, linear, make_problem
from transposable import Pattern, find_mask
from transposable.errors import MethodError
from transposable.prune.methods.adaprune import AdaPrune
from transposable.prune.methods.base import Pruned
from transposable.prune.methods.mask_only import Magnitude
from transposable.prune.methods.sparsegpt import SparseGPT, gathered, mask_spans
from transposable.prune.problem import LayerProblem


def textbook(problem: LayerProblem, damping: float, block: int) -> Pruned:
    """Column by column, with the inverse of what is left of H computed anew for every one."""
    reading, pattern = problem.reading, problem.pattern
    groups, rows, cols = reading.shape
    weight = problem.weight.clone()
    mask = torch.zeros_like(problem.allowed)
    grams = []
    for group in range(groups):
        gram = problem.gram[group].clone()
        shift = damping * gram.diagonal().mean()
        missing = problem.cross[group] - weight[group] @ gram
        gram.diagonal().add_(shift)
        weight[group] += missing @ torch.linalg.inv(gram)
        grams.append(gram)

    def first_of_inverse(group: int, column: int) -> torch.Tensor:
        return torch.linalg.inv(grams[group][column:, column:])[0]

    for start in range(0, cols, 1):
        unstructured = pattern.structure == "unstructured"
        at = start % (block if unstructured else reading.channels)
        if at % (block if unstructured else pattern.m) == 0:
            end = min(start + block, cols)
            if not unstructured:
                end = min(start + pattern.m, start - at + reading.channels)
            scores = torch.stack(
                [
                    weight[group][:, column].square() / first_of_inverse(group, column)[0]
                    for group in range(groups)
                    for column in range(start, end)
                ]
            ).reshape(groups, end - start, rows)
            scores = scores.transpose(1, 2) * problem.allowed[:, :, start:end]
            if unstructured:
                kept = math.ceil(groups * rows * end * pattern.density - 1e-9)
                kept -= math.ceil(groups * rows * start * pattern.density - 1e-9)
                threshold = scores.flatten().sort(descending=True).values[: kept + 1]
                mask[:, :, start:end] = scores >= (threshold[kept - 1] if kept else math.inf)
            else:
                mask[:, :, start:end] = find_mask(
                    scores.contiguous(), pattern, scores=scores, layout="stacked"
                ).tensor
        for group in range(groups):
            row = first_of_inverse(group, start)
            pruned = ~(mask[group, :, start] & problem.allowed[group, :, start])
            change = weight[group, :, start] * pruned / row[0]
            weight[group, :, start:] -= change[:, None] * row
    return Pruned(weight * (mask & problem.allowed), mask)


@pytest.mark.parametrize("pattern", ["2:4T", "2:4", "1:4S", "3:8T", "40%"])
@pytest.mark.parametrize("block", [1, 5, 8, 128])
def test_equals_the_textbook(pattern: str, block: int) -> None:
    problem = linear(10, 22, 60, pattern)
    pruned = SparseGPT(block=block).prune(problem)
    wanted = textbook(problem, 0.01, block)
    assert torch.equal(pruned.mask, wanted.mask)
    torch.testing.assert_close(pruned.weight, wanted.weight, rtol=1e-7, atol=1e-9)
    assert_holds(problem, pruned)


@pytest.mark.parametrize("groups", [1, 2])
def test_equals_the_textbook_for_a_convolution(groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 8, 2, groups=groups).double()
    x = torch.randn(5, 12, 5, 5, dtype=torch.double).cumsum(2)
    problem = make_problem(layer, x, "2:4T")  # ragged: 6 channels in a group of two
    pruned = SparseGPT(block=10).prune(problem)
    wanted = textbook(problem, 0.01, 10)
    assert torch.equal(pruned.mask, wanted.mask)
    torch.testing.assert_close(pruned.weight, wanted.weight, rtol=1e-7, atol=1e-9)
    assert_holds(problem, pruned)


def test_equals_the_textbook_for_targets_of_other_inputs_and_zeros_that_stay() -> None:
    problem = linear(8, 12, 60)
    problem.weight[0, ::3, ::2] = 0
    other = problem.cross + 0.1 * torch.randn(problem.cross.shape, dtype=torch.double).abs()
    problem = replace(problem, cross=other, allowed=problem.weight != 0)
    pruned = SparseGPT().prune(problem)
    wanted = textbook(problem, 0.01, 128)
    assert torch.equal(pruned.mask, wanted.mask)
    torch.testing.assert_close(pruned.weight, wanted.weight, rtol=1e-7, atol=1e-9)
    assert bool((pruned.weight[~problem.allowed] == 0).all())


def test_spans_end_with_kernel_positions_and_blocks_hold_whole_spans() -> None:
    problem = make_problem(nn.Conv1d(6, 8, 2), torch.randn(2, 6, 9), "2:4T")
    spans = list(mask_spans(problem, 128))
    assert spans == [(0, 4), (4, 6), (6, 10), (10, 12)]
    assert list(gathered(iter(spans), 7)) == [[(0, 4), (4, 6)], [(6, 10), (10, 12)]]
    assert list(gathered(iter(spans), 1)) == [[span] for span in spans]
    share = replace(problem, pattern=Pattern.parse("50%"))
    assert list(mask_spans(share, 5)) == [(0, 5), (5, 10), (10, 12)]


def test_a_mask_from_other_scores_is_found_before_weights_change() -> None:
    problem = linear(12, 16, 60, "4:8T")
    pruned = SparseGPT(scores="magnitude").prune(problem)
    assert torch.equal(pruned.mask, Magnitude().prune(problem).mask)
    assert problem.relative_error(pruned.weight) < problem.relative_error(
        problem.weight * pruned.mask
    )


def test_repairs_more_than_the_mask_alone_and_less_than_least_squares_on_its_mask() -> None:
    problem = linear(32, 48, 400, "4:8T")
    pruned = SparseGPT().prune(problem)
    exact = AdaPrune(scores=lambda p: pruned.mask.double()).prune(problem)
    assert torch.equal(exact.mask, pruned.mask)
    errors = [
        problem.relative_error(w)
        for w in (exact.weight, pruned.weight, problem.weight * pruned.mask)
    ]
    assert errors == sorted(errors)
    assert errors[1] < 0.7 * errors[2]


@settings(max_examples=25, deadline=None)
@given(
    out=st.integers(1, 18),
    into=st.integers(1, 18),
    samples=st.integers(1, 30),
    pattern=st.sampled_from(["2:4T", "4:8T", "2:4", "60%"]),
    damping=st.sampled_from([0.0, 0.01, 1.0]),
    centred=st.booleans(),
)
def test_holds_the_pattern_whatever_the_rank(
    out: int, into: int, samples: int, pattern: str, damping: float, centred: bool
) -> None:
    problem = linear(out, into, samples, pattern, seed=samples, centred=centred)
    pruned = SparseGPT(damping=damping).prune(problem)
    assert_holds(problem, pruned)
    assert pruned.info["damping"] >= damping


def test_a_dead_input_loses_its_weights_first_and_disturbs_nothing() -> None:
    draw = torch.Generator().manual_seed(3)
    x = correlated(50, 8, draw)
    x[:, 2] = 0
    layer = nn.Linear(8, 8).double()
    with torch.no_grad():
        layer.weight[:, 2] = 100
    pruned = SparseGPT().prune(make_problem(layer, x, "2:4"))
    assert not bool(pruned.mask[0, :, 2].any())
    assert float(pruned.weight.abs().max()) < 10


def test_inputs_in_other_units_leave_the_mask_and_scale_the_weights() -> None:
    x = correlated(80, 16, torch.Generator().manual_seed(4))
    results = []
    for scale in (1.0, 2.0**-20):
        layer = nn.Linear(16, 8, bias=False).double()
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 2, 128).sin().reshape(8, 16) / scale)
        pruned = SparseGPT().prune(make_problem(layer, x * scale))
        results.append((pruned.mask, pruned.weight * scale))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize(
    "settings", [{"damping": -1.0}, {"damping": math.nan}, {"block": 0}, {"scores": "nonsense"}]
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(MethodError, match=next(iter(settings))):
        SparseGPT(**settings)
