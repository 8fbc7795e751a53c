"""Numbers of 0/1 matrices: all matrices looked at, published values, and another algorithm."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from transposable.analysis import counting
from transposable.analysis.counting import (
    ASYMPTOTIC_ERROR,
    asymptotic_log,
    bounded_matrices,
    regular_matrices,
)

# OEIS A008300: n x n matrices with all line sums k; row n, k = 0 .. n.
A008300 = {
    1: [1, 1],
    2: [1, 2, 1],
    3: [1, 6, 6, 1],
    4: [1, 24, 90, 24, 1],
    5: [1, 120, 2040, 2040, 120, 1],
    6: [1, 720, 67950, 297200, 67950, 720, 1],
    7: [1, 5040, 3110940, 68938800, 68938800, 3110940, 5040, 1],
    8: [1, 40320, 187530840, 24046189440, 116963796250, 24046189440, 187530840, 40320, 1],
    9: [
        *(1, 362880, 14398171200, 12025780892160, 315031400802720),
        *(315031400802720, 12025780892160, 14398171200, 362880, 1),
    ],
}


def all_matrices(rows: int, cols: int) -> np.ndarray:
    bits = np.arange(1 << rows * cols)[:, None] >> np.arange(rows * cols) & 1
    return bits.reshape(-1, rows, cols)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_every_matrix_looked_at(m: int) -> None:
    matrices = all_matrices(m, m)
    for n in range(m + 1):
        holds = (matrices.sum(1) == n).all(1) & (matrices.sum(2) == n).all(1)
        assert regular_matrices(m, n).exact == holds.sum()


@pytest.mark.parametrize("m", A008300)
def test_published_values(m: int) -> None:
    assert [regular_matrices(m, n).exact for n in range(m + 1)] == A008300[m]


def test_a_larger_published_value() -> None:
    """OEIS A058527, n = 5."""
    assert regular_matrices(10, 5).exact == 6736218287430460752


def by_roots_of_unity(m: int, n: int, prime: int) -> int:
    """The same number modulo a prime, as a constant term: no line sums, no dynamic program.

    B(m, n) = [x_1^n ... x_m^n] e_n(x)^m, averaged over x_i among the roots of unity of an order
    that tells the exponents 0 .. m apart from n; equal choices are counted together.
    """
    order = max(n, m - n) + 1
    assert prime % order == 1
    root = next(
        r
        for g in range(2, 100)
        for r in [pow(g, (prime - 1) // order, prime)]
        if all(pow(r, d, prime) != 1 for d in range(1, order))
    )
    powers = [pow(root, k, prime) for k in range(order)]
    chosen = itertools.combinations(range(m + order - 1), order - 1)
    counts = (
        np.diff(np.array([(-1, *c, m + order - 1) for c in chosen], dtype=np.int64), axis=1) - 1
    )  # stars and bars: how often each root is taken
    polynomial = np.zeros((len(counts), n + 1), dtype=np.int64)
    polynomial[:, 0] = 1
    for k, value in enumerate(powers):
        # (1 + value t)^c for every possible c, multiplied in
        table = np.array(
            [
                [math.comb(c, j) * pow(value, j, prime) % prime for j in range(n + 1)]
                for c in range(m + 1)
            ],
            dtype=np.int64,
        )[counts[:, k]]
        product = np.zeros_like(polynomial)
        for j in range(n + 1):
            moved = polynomial[:, : n + 1 - j] * table[:, j : j + 1] % prime
            product[:, j:] = (product[:, j:] + moved) % prime
        polynomial = product
    total = 0
    exponents = (counts * np.arange(order)).sum(1) * n % order
    for row, e_n, exponent in zip(
        counts.tolist(), polynomial[:, n].tolist(), exponents.tolist(), strict=True
    ):
        orders = math.factorial(m) // math.prod(map(math.factorial, row))
        total += orders * pow(e_n, m, prime) * powers[-exponent % order]
    return total * pow(pow(order, m, prime), -1, prime) % prime


@pytest.mark.parametrize(("m", "n"), [(6, 2), (8, 4), (10, 5), (11, 4), (12, 6), (13, 6)])
def test_another_algorithm(m: int, n: int) -> None:
    order = max(n, m - n) + 1
    start = 2**30 // order * order + 1
    prime = next(p for p in range(start, 2**31, order) if is_prime(p))
    found = regular_matrices(m, n).exact
    assert found is not None
    assert found % prime == by_roots_of_unity(m, n, prime)


def is_prime(p: int) -> bool:
    return all(p % d for d in range(2, math.isqrt(p) + 1))


def test_sixteen_takes_seconds_and_is_kept() -> None:
    found = regular_matrices(16, 8)
    assert found.exact == 34812290428176298285394893936773707951192224124239796250
    assert regular_matrices(16, 8) is found


@pytest.mark.parametrize("m", [*range(2, 14), 16, 20, 24, 32, 64])
def test_the_asymptotic_form_is_as_close_as_it_says(m: int) -> None:
    """Wherever the exact count takes no time."""
    tried = 0
    for n in range(1, m // 2 + 1):
        if counting._multisets(m, min(n, m - m // 2), n * (m - m // 2)) > 1000:
            continue
        tried += 1
        exact = regular_matrices(m, n)
        assert exact.exact is not None
        off = abs(asymptotic_log(m, n) - math.log(exact.exact))
        assert off < ASYMPTOTIC_ERROR * m / (n * (m - n))
        assert asymptotic_log(m, m - n) == pytest.approx(asymptotic_log(m, n), rel=1e-12)
    assert tried


def test_what_is_not_counted_says_how_wrong_it_can_be() -> None:
    found = regular_matrices(32, 16)
    assert found.exact is None
    assert found.error == pytest.approx(ASYMPTOTIC_ERROR / 8)
    assert found.ln == pytest.approx(587.1, abs=0.1)
    assert regular_matrices(32, 2).exact is not None, "few multisets: still exact"


def test_estimates_for_what_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = {n: regular_matrices(10, n) for n in range(1, 10)}
    monkeypatch.setattr(counting, "MOST_STATES", 0)
    regular_matrices.cache_clear()
    try:
        for n, known in exact.items():
            found = regular_matrices(10, n)
            assert found.exact is None
            assert abs(found.ln - known.ln) <= found.error
    finally:
        regular_matrices.cache_clear()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 4), (2, 3), (3, 3), (4, 2), (4, 4), (3, 5)])
def test_at_most(rows: int, cols: int) -> None:
    matrices = all_matrices(rows, cols)
    for n in range(1, max(rows, cols) + 1):
        holds = (matrices.sum(1) <= n).all(1) & (matrices.sum(2) <= n).all(1)
        assert bounded_matrices(rows, cols, n).exact == holds.sum()
        assert bounded_matrices(cols, rows, n).exact == holds.sum()


def test_the_bounds_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(r, c, n) for r in range(3, 9) for c in range(3, r + 1) for n in range(1, c)]
    exact = {case: bounded_matrices(*case) for case in cases}
    exact = {case: known for case, known in exact.items() if known.exact is not None}
    assert len(exact) > 50
    monkeypatch.setattr(counting, "MOST_STATES", 0)
    bounded_matrices.cache_clear()
    try:
        for case, known in exact.items():
            found = bounded_matrices(*case)
            assert found.exact is None
            assert abs(found.ln - known.ln) <= found.error * (1 + 1e-9)
    finally:
        bounded_matrices.cache_clear()
