"""The exact optimum of one tile, from OR-tools' integer min-cost flow; shares nothing with src.

A full tile [m, m] ships n units out of every row and into every column, at most one along each
(row, column). A cropped tile may ship less: a free arc runs from the source to the sink.

Scores become integers: the largest finite magnitude is just under 2^40, and an infinite score
counts 2^14 times that, more than all finite ones of a tile together. Costs stay below 2^54, so the
solver's own scaling (by the number of nodes, at most 130) cannot overflow; it would report it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python import min_cost_flow

BITS = 40
INFINITE = 2**14


def optimal_mask(scores: NDArray[np.floating], n: int, m: int) -> NDArray[np.bool_]:
    """The best mask [rows, cols] of one tile; cropped if rows or cols is less than m."""
    return best_flow(quantise(scores), n, full=scores.shape == (m, m))


def best_flow(values: NDArray[np.int64], n: int, *, full: bool) -> NDArray[np.bool_]:
    """The mask of the largest sum of integers: n per line if full, else at most n."""
    rows, cols = values.shape
    costs = -values.reshape(-1)
    source, sink = rows + cols, rows + cols + 1
    flow = min_cost_flow.SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(
        np.concatenate(
            [np.repeat(np.arange(rows), cols), np.full(rows, source), rows + np.arange(cols)]
        ),
        np.concatenate(
            [np.tile(rows + np.arange(cols), rows), np.arange(rows), np.full(cols, sink)]
        ),
        np.concatenate(
            [np.ones(rows * cols, np.int64), np.full(rows, n), np.full(cols, n)],
        ),
        np.concatenate([costs, np.zeros(rows + cols, np.int64)]),
    )
    units = n * max(rows, cols)
    if not full:
        flow.add_arc_with_capacity_and_unit_cost(source, sink, units, 0)
    flow.set_node_supply(source, units)
    flow.set_node_supply(sink, -units)
    status = flow.solve()
    assert status == flow.OPTIMAL, status
    return flow.flows(arcs[: rows * cols]).reshape(rows, cols).astype(bool)


def quantise(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """The scores as integers, by a power-of-two scale for each tile."""
    largest = max((abs(x) for x in map(float, scores.flat) if math.isfinite(x)), default=0.0)
    exponent = BITS - math.frexp(largest)[1] if largest else 0
    top = round(math.ldexp(largest, exponent)) or 1
    return np.array(
        [
            round(math.ldexp(x, exponent))
            if math.isfinite(x)
            else int(math.copysign(INFINITE, x)) * top
            for x in map(float, scores.flat)
        ],
        np.int64,
    ).reshape(scores.shape)


def value(scores: NDArray[np.floating], kept: NDArray[np.bool_]) -> tuple[int, float]:
    """(+inf kept less -inf kept, sum of the finite scores kept), to be compared in this order."""
    chosen = [float(x) for x in scores[kept]]
    infinite = sum(int(math.copysign(1, x)) for x in chosen if math.isinf(x))
    return infinite, math.fsum(x for x in chosen if math.isfinite(x))


def assert_optimal(
    scores: NDArray[np.floating], kept: NDArray[np.bool_], n: int, m: int, what: str = ""
) -> None:
    """Fail unless kept satisfies the pattern and is worth as much as the flow's mask, to 1e-6.

    Signed scores can sum to next to nothing: the flow's own rounding is allowed for as well.
    """
    by_row, by_col = kept.sum(1), kept.sum(0)
    if scores.shape == (m, m):
        assert (by_row == n).all(), (what, by_row)
        assert (by_col == n).all(), (what, by_col)
    else:
        assert (by_row <= n).all(), (what, by_row)
        assert (by_col <= n).all(), (what, by_col)
    best = optimal_mask(scores, n, m)
    want, got = value(scores, best), value(scores, kept)
    assert got[0] == want[0], (what, got, want)
    finite = [abs(float(x)) for x in scores.flat if math.isfinite(x)]
    rounding = scores.size * math.ldexp(max(finite, default=0.0), -BITS)
    scale = math.fsum(abs(float(x)) for x in scores[best] if math.isfinite(x))
    assert abs(got[1] - want[1]) <= 1e-6 * scale + rounding, (what, got, want, scale)
