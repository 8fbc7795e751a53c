"""AdaPrune as published: what is absorbed where, and Adam on the layer's own operator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from prune.problems import assert_holds, make_problem
from transposable import Pattern
from transposable.errors import MethodError
from transposable.prune.methods.adaprune import AdaPrune
from transposable.prune.methods.published import PublishedAdaPrune, absorb
from transposable.prune.problem import LayerProblem
from transposable.prune.reading import Reading

LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (60, 12)),
    "sequences": (lambda: nn.Linear(12, 8, bias=False), (20, 5, 12)),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, padding=1), (10, 8, 9)),
    "conv2d": (lambda: nn.Conv2d(8, 16, 3, groups=2, stride=2), (6, 8, 9, 9)),
    "padded": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), (6, 6, 5, 5)),
    "transformers": (lambda: Conv1D(8, 12), (20, 3, 12)),
}


def problem_of(name: str, pattern: str = "2:4T") -> LayerProblem:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    return make_problem(layer, torch.randn(shape).cumsum(1), pattern)


def published_absorb(weight: torch.Tensor, mask: torch.Tensor, size: int) -> torch.Tensor:
    """What the published code does to a weight [out, in] whose rows are whole groups."""
    groups, kept = weight.view(len(weight), -1, size), mask.view(len(mask), -1, size).float()
    moved = groups + groups.mul(1 - kept).sum(2, keepdim=True) / kept.sum(2, keepdim=True)
    return (moved * kept).view_as(weight)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
def test_absorbs_what_the_published_code_does(n: int, m: int) -> None:
    torch.manual_seed(1)
    weight = torch.randn(6, 16)
    mask = torch.zeros(6, 16, dtype=torch.bool)
    order = weight.abs().view(6, -1, m).topk(n, dim=2).indices
    mask.view(6, -1, m).scatter_(2, order, True)
    mine = absorb(weight[None], mask[None], Pattern(n, m), Reading(1, 6, 1, 16))
    torch.testing.assert_close(mine[0], published_absorb(weight, mask, m))


def test_groups_start_anew_at_a_kernel_position_and_may_be_short() -> None:
    reading = Reading(1, 1, 2, 6)  # groups of 4 and 2, twice
    weight = torch.arange(1.0, 13.0).reshape(1, 1, 12)
    mask = torch.tensor([1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1]).bool().reshape(1, 1, 12)
    found = absorb(weight, mask, Pattern(2, 4), reading)
    wanted = [1 + 2.5, 0, 0, 4 + 2.5, 0, 6 + 5, 0, 0, 0, 0, 11, 12]  # 7..10 keep none: lost
    assert found.flatten().tolist() == wanted


def test_an_unstructured_mask_absorbs_the_mean_of_all_that_is_pruned() -> None:
    weight = torch.tensor([[[5.0, -1, 4, 2]]])
    mask = torch.tensor([[[True, False, True, False]]])
    found = absorb(weight, mask, Pattern.parse("50%"), Reading(1, 1, 1, 4))
    assert found.tolist() == [[[5.5, 0, 4.5, 0]]]


@pytest.mark.parametrize("name", LAYERS)
def test_tunes_every_kind_of_layer(name: str) -> None:
    problem = problem_of(name)
    start = PublishedAdaPrune(steps=0).prune(problem)
    pruned = PublishedAdaPrune(steps=300, batch=10, rate=1e-2).prune(problem)
    assert_holds(problem, pruned)
    assert torch.equal(start.mask, pruned.mask)
    errors = [_loss(problem, p.weight, p.bias_change) for p in (pruned, start)]
    assert errors[0] < 0.9 * errors[1]
    assert (pruned.bias_change is None) == (problem.module.bias is None)
    if start.bias_change is not None:
        assert not bool(start.bias_change.any())


def _loss(problem: LayerProblem, weight: torch.Tensor, change: torch.Tensor | None) -> float:
    """The error in units of the output's power, by running a copy of the module."""
    layer = problem.module
    assert isinstance(layer, nn.Module)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    x, y = problem.samples[0]
    with torch.no_grad():
        layer.weight.copy_(problem.reading.weight(weight, layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(change)
        error = float((layer(x) - y).square().sum() / y.square().sum())
        layer.load_state_dict(before)
    return error


def test_one_step_is_that_of_adam_on_the_published_loss() -> None:
    problem = problem_of("linear")
    settings = PublishedAdaPrune(steps=3, batch=60)  # all samples: no draw matters
    pruned = settings.prune(problem)
    x, y = problem.samples[0]
    mask = pruned.mask[0]
    layer = nn.Linear(12, 8)
    start = PublishedAdaPrune(steps=0).prune(problem).weight[0]
    with torch.no_grad():
        layer.weight.copy_(start)
        layer.bias.zero_()
    adams = [torch.optim.Adam([layer.weight], 1e-3), torch.optim.Adam([layer.bias], 1e-2)]
    for _ in range(3):
        loss = nn.functional.mse_loss(layer(x), y)
        layer.zero_grad()
        loss.backward()
        for adam in adams:
            adam.step()
        with torch.no_grad():
            layer.weight.mul_(mask)
    torch.testing.assert_close(pruned.weight[0].float(), layer.weight.detach())
    torch.testing.assert_close(pruned.bias_change, layer.bias.detach())


def test_the_seed_decides_and_nothing_else_is_touched() -> None:
    problem = problem_of("conv2d")
    before = {name: p.detach().clone() for name, p in problem.module.named_parameters()}
    state = torch.get_rng_state()
    with torch.no_grad():
        first = PublishedAdaPrune(steps=20, batch=2, seed=1).prune(problem)
    torch.randn(3)
    again = PublishedAdaPrune(steps=20, batch=2, seed=1).prune(problem)
    other = PublishedAdaPrune(steps=20, batch=2, seed=2).prune(problem)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    torch.set_rng_state(state)
    PublishedAdaPrune(steps=20, batch=2).prune(problem)
    assert torch.equal(state, torch.get_rng_state())
    for name, parameter in problem.module.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_batches_of_several_shapes_count_by_their_entries() -> None:
    problem = problem_of("sequences")
    x, y = problem.samples[0]
    parts = [(x[:7], y[:7]), (x[7:, :2], y[7:, :2]), (x[7:9, 2:], y[7:9, 2:]), (x[3], y[3])]
    mixed = replace(problem, samples=parts)
    pruned = PublishedAdaPrune(steps=1, batch=100, rate=1e-2).prune(mixed)
    flat_x = torch.cat([part.reshape(-1, 12) for part, _ in parts])
    flat_y = torch.cat([part.reshape(-1, 8) for _, part in parts])
    flat = replace(problem, samples=[(flat_x, flat_y)])
    wanted = PublishedAdaPrune(steps=1, batch=len(flat_x), rate=1e-2).prune(flat)
    torch.testing.assert_close(pruned.weight, wanted.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_layers_of_other_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 8).to(dtype)
    problem = make_problem(layer, torch.randn(40, 12).to(dtype))
    pruned = PublishedAdaPrune(steps=200).prune(problem)
    assert pruned.weight.dtype == torch.float64
    assert problem.relative_error(pruned.weight) < problem.relative_error(
        PublishedAdaPrune(steps=0).prune(problem).weight
    )


def test_zeros_that_stay_are_not_tuned() -> None:
    problem = problem_of("linear")
    problem.allowed[0, ::2, ::3] = False
    pruned = PublishedAdaPrune(steps=10).prune(problem)
    assert_holds(problem, pruned)


def test_exact_least_squares_beat_it() -> None:
    problem = problem_of("sequences")
    published, exact = (
        PublishedAdaPrune().prune(problem),
        AdaPrune("magnitude", ridge=0).prune(problem),
    )
    assert torch.equal(published.mask, exact.mask)
    assert problem.relative_error(exact.weight) < problem.relative_error(published.weight)


def test_says_what_is_missing() -> None:
    problem = problem_of("linear")
    with pytest.raises(MethodError, match="without samples"):
        PublishedAdaPrune().prune(replace(problem, samples=[]))
    with pytest.raises(MethodError, match="without its module"):
        PublishedAdaPrune().prune(replace(problem, module=None))


@pytest.mark.parametrize(
    "settings",
    [{"steps": -1}, {"batch": 0}, {"rate": -1.0}, {"bias_rate": float("inf")}, {"scores": "none"}],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(settings))):
        PublishedAdaPrune(**settings)
