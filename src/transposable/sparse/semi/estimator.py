"""A 2:4 estimate of a gradient: two of every four, unbiased, of the smallest variance."""

from __future__ import annotations

import torch

from transposable.errors import SparseFormatError
from transposable.sparse.semi.operand import GROUP, KEPT


def inclusion(groups: torch.Tensor) -> torch.Tensor:
    """The probabilities with which entries of groups of four are kept, two of them.

        p_i = min(1, |a_i| / t),  t such that sum p = 2

    Of all unbiased estimates a_i / p_i (kept) or 0 with two kept of four, these have the least

        sum_i var_i = sum_i a_i^2 (1 / p_i - 1)

    (Lagrange: p_i is proportional to |a_i| where it is below 1). At most one p_i is capped unless
    no more than two entries are other than 0: if the largest exceeds the sum of the others it is
    always kept, and one of the others is with a probability proportional to its size.

    Args:
        groups: [..., 4], float32, finite.

    Returns:
        [..., 4]; 0 for an entry 0.

    Example:
        >>> inclusion(torch.tensor([[1.0, -1.0, 1.0, 1.0], [6.0, 1.0, -2.0, 1.0]])).tolist()
        [[0.5, 0.5, 0.5, 0.5], [1.0, 0.25, 0.5, 0.25]]

    Chmiel et al., "Minimum Variance Unbiased N:M Sparsity for the Neural Gradients", ICLR 2023;
    Hu et al., "Accelerating Transformer Pre-training with 2:4 Sparsity", ICML 2024.
    """
    size = groups.abs()
    largest, at = size.max(-1, keepdim=True)
    # Relative to the largest, so that no sum overflows or underflows.
    size = size / torch.where(largest > 0, largest, 1.0)
    rest = size.scatter(-1, at, 0.0)
    others = rest.sum(-1, keepdim=True)
    capped = others <= 1
    # Capped: 1 for the largest and one more of the others. Else 2 |a_i| / sum.
    scale = torch.where(capped, others, (others + 1) / KEPT)
    shares = torch.where(capped, rest, size) / torch.where(scale > 0, scale, 1.0)
    first = torch.where(capped & (largest > 0), 1.0, shares.gather(-1, at))
    return shares.scatter(-1, at, first).clamp_(max=1.0)


def variance(groups: torch.Tensor) -> torch.Tensor:
    """The variance of :func:`estimate` summed over a group: sum_i a_i^2 (1 / p_i - 1).

    Example:
        >>> variance(torch.tensor([1.0, 1.0, 1.0, 1.0])).item()
        4.0
    """
    p = inclusion(groups)
    each = groups.square() * (1 / torch.where(p > 0, p, 1.0) - 1)
    return each.sum(-1)


def estimate(gradient: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """An unbiased estimate of a matrix with at most two of every four rows kept in each column.

        E[estimate] = gradient,  with the least variance there is, see :func:`inclusion`

    Rows are tokens: the groups lie along the contraction of dW = dy^T x. The two of a group are
    drawn systematically: one uniform number u for each group; entry i is kept if a whole number
    plus u falls into its part, of length p_i, of [0, 2].

    Args:
        gradient: [tokens, size], any float dtype; tokens a multiple of 4. A group that is not
            finite becomes NaN in two places, so that a check for overflow sees it.
        generator: of the random numbers; default torch's own on the device.

    Returns:
        The same shape and dtype. A value is rounded once to that dtype.

    Raises:
        SparseFormatError: if it is no matrix with a multiple of 4 rows.

    Complexity: a few passes over the matrix in float32.

    Example:
        >>> estimate(torch.tensor([[3.0], [0.0], [0.0], [-2.0]])).tolist()
        [[3.0], [0.0], [0.0], [-2.0]]
    """
    if gradient.dim() != 2 or gradient.shape[0] % GROUP:
        raise SparseFormatError(
            f"estimate: received a gradient {tuple(gradient.shape)}; it takes [tokens, size] with "
            f"a multiple of {GROUP} tokens: fill it up with zeros"
        )
    tokens, size = gradient.shape
    groups = gradient.detach().float().reshape(tokens // GROUP, GROUP, size).transpose(1, 2)
    finite = groups.isfinite().all(-1, keepdim=True)
    p = inclusion(torch.where(finite, groups, 0.0))
    # The random numbers in float32 are multiples of 2^-24, as exact as the sums below.
    u = torch.rand(
        groups.shape[:-1], generator=generator, device=gradient.device, dtype=torch.float32
    )
    ends = p.cumsum(-1)
    ends[..., -1] = KEPT  # whatever rounding made of it: exactly two are kept
    marks = torch.floor(ends - u[..., None])
    before = torch.cat([torch.floor(-u[..., None]), marks[..., :-1]], -1)
    kept = marks > before
    drawn = torch.where(kept & (p > 0), groups / torch.where(p > 0, p, 1.0), 0.0)
    bad = torch.arange(GROUP, device=gradient.device) < KEPT
    drawn = torch.where(finite, drawn, torch.where(bad, torch.nan, 0.0))
    return drawn.transpose(1, 2).reshape(tokens, size).to(gradient.dtype)
