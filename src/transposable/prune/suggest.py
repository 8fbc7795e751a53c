"""Which pattern an unstructured-sparse weight nearly has already."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from transposable.arrays import to_scores
from transposable.errors import PatternError, ScoresError
from transposable.feasibility import feasibility
from transposable.nn.selection import Names, select
from transposable.pattern import Pattern, Structure


def suggest_pattern(
    weight: Any, confidence: float = 0.95, m: int = 8, transposable: bool = False
) -> Pattern | None:
    """The tightest N:M that a group of the weight satisfies with at least this probability.

        N = min { n >= 1 : P(rho, n, m) >= confidence },   rho = share of zeros of the weight

    with P from :func:`transposable.feasibility.feasibility`: the zeros are taken to be spread
    evenly, and their true places are not looked at. The probability is of one group of m weights,
    which for a transposable pattern is one row or one column of a tile; about a share
    ``1 - confidence`` of the groups, at most, has to be repaired by pruning more.

    Args:
        weight: a torch tensor or array of any shape, float32, float64, float16 or bfloat16.
        confidence: larger than 0, at most 1.
        m: group length, 2 to 64.
        transposable: suggest N:MT.

    Returns:
        The pattern. None if there is none with n < m: the weight has too few zeros, and what to
        remove from it is not for them to say. A larger m needs fewer of them.

    Raises:
        PatternError: if ``confidence`` or ``m`` is out of range.
        ScoresError: if the weight is no array of these types, or is empty.

    Complexity: one pass over the weight.

    Example:
        >>> weight = torch.where(torch.arange(64).reshape(8, 8) % 10 < 7, 0.0, 1.0)
        >>> suggest_pattern(weight), suggest_pattern(weight, 0.98, transposable=True)
        (Pattern('4:8'), Pattern('5:8T'))
        >>> suggest_pattern(torch.ones(8, 8)) is None
        True

    Hubara et al., NeurIPS 2021, and its code, which chooses a layer's pattern by this rule.
    """
    structure: Structure = "transposable" if transposable else "row"
    Pattern(1, m, structure)  # says what is wrong with an m
    try:
        valid = 0.0 < confidence <= 1.0
    except TypeError:
        valid = False
    if not valid:
        raise PatternError(
            f"suggest_pattern: received confidence={confidence!r}; it is a probability, larger "
            "than 0 and at most 1, such as 0.95"
        )
    if isinstance(weight, torch.Tensor):
        weight = weight.detach().cpu()
    tensor = to_scores(weight, "suggest_pattern")
    if tensor.numel() == 0:
        raise ScoresError(
            f"suggest_pattern: received a weight of shape {tuple(tensor.shape)}, which holds "
            "nothing; leave such a layer out"
        )
    rho = 1 - int(torch.count_nonzero(tensor)) / tensor.numel()
    for n in range(1, m):
        if feasibility(rho, n, m) >= confidence:
            return Pattern(n, m, structure)
    return None


def suggest_patterns(
    model: nn.Module,
    confidence: float = 0.95,
    m: int = 8,
    transposable: bool = False,
    *,
    include: Names | None = None,
    exclude: Names = (),
) -> dict[str, Pattern]:
    """The suggestion of :func:`suggest_pattern` for each layer of a model that has one.

    Args:
        model: with unstructured-sparse weights.
        confidence, m, transposable: as there.
        include, exclude: names of layers, as in :func:`transposable.nn.sparsify`.

    Returns:
        Patterns by layer name, which ``prune_model`` takes. Layers without a suggestion are not
        in it, and so stay as they are.

    Raises:
        SelectionError, PatternError, ScoresError: as there and as in ``sparsify``.

    Example:
        >>> layer = nn.Linear(16, 16)
        >>> layer.weight.data[:, ::2] = layer.weight.data[:12, 1::4] = 0
        >>> suggest_patterns(nn.Sequential(layer, nn.ReLU(), nn.Linear(16, 8)))
        {'0': Pattern('5:8')}
    """
    found = {}
    for one in select(model, Pattern(1, m), include, exclude, "suggest_patterns"):
        pattern = suggest_pattern(one.module.weight, confidence, m, transposable)
        if pattern is not None:
            found[one.name] = pattern
    return found
