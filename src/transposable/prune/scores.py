"""How much a weight matters to the output of its layer: what a mask keeps the most of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from transposable.errors import MethodError
from transposable.prune.inverse import inverse_factor
from transposable.prune.problem import LayerProblem

Scores = Callable[[LayerProblem], torch.Tensor]
"""Scores [groups, rows, cols] of a layer; larger is kept."""


def magnitude(problem: LayerProblem) -> torch.Tensor:
    """|w_ij|: needs no data."""
    return problem.weight.abs()


def wanda(problem: LayerProblem) -> torch.Tensor:
    """|w_ij| ||x_j||: Sun et al., "A Simple and Effective Pruning Approach for LLMs", 2024."""
    return problem.weight.abs() * problem.input_power.sqrt().unsqueeze(1)


def activation(problem: LayerProblem) -> torch.Tensor:
    """w_ij^2 ||x_j||^2: the squared error of the output if the weight alone is removed."""
    return problem.weight.square() * problem.input_power.unsqueeze(1)


def obs(problem: LayerProblem, damping: float = 0.01) -> torch.Tensor:
    """w_ij^2 / (H^-1)_jj: the same error after the other weights have made up for it.

    Hassibi and Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", 1993;
    the damping, in units of the mean diagonal of H, is that of SparseGPT.
    """
    factor, _ = inverse_factor(problem, damping)
    return problem.weight.square() / factor.square().sum(1, keepdim=True)


SCORES: Final[dict[str, Scores]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "activation": activation,
    "obs": obs,
}


def make_scores(scores: str | Scores) -> Scores:
    """Scores by name, or the function itself.

    Raises:
        MethodError: if there are none of this name.
    """
    if callable(scores):
        return scores
    if scores not in SCORES:
        raise MethodError(
            f"scores: received {scores!r}; the scores are {', '.join(map(repr, SCORES))}, or a "
            "function from a LayerProblem to scores [groups, rows, cols]"
        )
    return SCORES[scores]
