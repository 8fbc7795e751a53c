"""How likely a group of unstructured-sparse weights satisfies N:M already."""

from __future__ import annotations

import math

from transposable.errors import PatternError


def feasibility(rho: float, n: int, m: int) -> float:
    """Probability that a group of m weights, each zero with probability rho, satisfies n:m.

        P = sum over i >= m - n of C(m, i) rho^i (1 - rho)^(m - i)

    n is the number *kept*, as everywhere here: the group needs at least m - n zeros. The paper
    counts the zeros: its N is this m - n. P is of one group; of g independent groups all satisfy
    the pattern with probability P^g. For large m it steps from 0 to 1 at rho = 1 - n/m.

    Args:
        rho: share of the weights that is zero, 0 <= rho <= 1.
        n: how many a group may keep, 0 <= n <= m; with n = m there is no constraint.
        m: group length, at least 1.

    Returns:
        P, the double nearest to the exact sum.

    Raises:
        PatternError: if an argument is out of range.

    Complexity: m products of integers of 53 m bits (more for rho below 2^-53).

    Example:
        >>> feasibility(0.5, 2, 4)  # 6 + 4 + 1 of 16
        0.6875
        >>> round(feasibility(0.7, 4, 8), 4)
        0.942

    Hubara et al., NeurIPS 2021, section on switching the structure.
    """
    for name, value in (("n", n), ("m", m)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise PatternError(f"feasibility: received {name}={value!r}; it must be an integer")
    if m < 1 or not 0 <= n <= m:
        raise PatternError(
            f"feasibility: received n={n}, m={m}; the rule is 0 <= n <= m with m >= 1, since n is "
            "the number kept of every m; from a number of zeros it is n = m - zeros"
        )
    try:
        valid = 0.0 <= rho <= 1.0  # not so for NaN
    except TypeError:
        valid = False
    if not valid:
        raise PatternError(
            f"feasibility: received rho={rho!r}; it is the share of zeros, from 0 to 1"
        )
    # A double is a ratio of integers, and the quotient of two integers is rounded once.
    zero, one = float(rho).as_integer_ratio()
    total: int = sum(
        math.comb(m, i) * zero**i * (one - zero) ** (m - i) for i in range(m - n, m + 1)
    )
    whole: int = one**m
    return total / whole
