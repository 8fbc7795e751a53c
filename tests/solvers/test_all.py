"""Every solver of the table: feasibility, dtypes, metamorphic relations, the optimum as a bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from score_families import make_scores
from solver_table import TABLE, TRANSPOSABLE_ROWS, Row
from strategies import FAMILIES, distinct, scores, tiles
from transposable import (
    Exact,
    Pattern,
    Reference,
    ScoresError,
    SolverError,
    Status,
    find_mask,
    solve,
    verify,
)
from transposable.solvers import SOLVERS, make_solver

every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
transposable_row = pytest.mark.parametrize("row", TRANSPOSABLE_ROWS, ids=lambda row: row.id)
few = settings(max_examples=20)


def small(row: Row) -> tuple[Pattern, ...]:
    """The row's patterns that the reference solves quickly."""
    return tuple(p for p in row.parsed if p.m <= 5)


def keeps(kept: torch.Tensor, pattern: Pattern, *, exactly: bool) -> bool:
    """The rule, by loops over groups: at most n everywhere, exactly n in full ones if asked."""
    rows, cols = kept.shape
    n, m = pattern.n, pattern.m
    if pattern.structure == "unstructured":
        return int(kept.sum()) == -(-kept.numel() * n // m)
    for left in range(0, cols, m):
        group = kept[:, left : left + m]
        counts = group.sum(1)
        if (counts > n).any():
            return False
        if not pattern.transposable:
            if exactly and group.shape[1] == m and (counts != n).any():
                return False
            continue
        for top in range(0, rows, m):
            tile = group[top : top + m]
            lines = torch.cat([tile.sum(0), tile.sum(1)])
            if (lines > n).any():
                return False
            if exactly and tile.shape == (m, m) and (lines != n).any():
                return False
    return True


def test_every_registered_solver_has_a_row() -> None:
    assert {type(row.solver) for row in TABLE} == set(SOLVERS.values())


@every_row
def test_solver_by_name_class_and_instance(row: Row) -> None:
    kind = type(row.solver)
    assert make_solver(kind.name) == make_solver(kind) == kind()
    assert make_solver(row.solver) is row.solver
    assert kind.promises_optimal == row.optimal


@every_row
@few
@given(data=st.data())
def test_masks_are_feasible(row: Row, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(row.parsed))
    matrix = data.draw(scores(2 * pattern.m + 3))
    solution = solve(matrix, pattern, row.solver)
    assert keeps(solution.mask.tensor, pattern, exactly=row.exactly)
    assert not verify(solution.mask, pattern).violations
    assert solution.status is (Status.OPTIMAL if row.optimal else Status.FEASIBLE)
    held = matrix.double()[solution.mask.tensor]
    size = held.abs().sum().item()
    assert solution.objective == pytest.approx(held.sum().item(), abs=1e-12 * size)
    assert solution.bound >= solution.objective - 1e-6 * size


@every_row
@few
@given(data=st.data())
def test_a_cropped_group_keeps_no_negative_score(row: Row, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(row.parsed))
    if pattern.structure in ("unstructured", "sequential"):
        return  # these keep a count, or a window
    side, seed = st.integers(1, pattern.m - 1), st.integers(0, 10**6)
    matrix = data.draw(st.builds(make_scores, st.just("gaussian"), side, side, seed))
    kept = solve(matrix, pattern, row.solver).mask.tensor
    assert not (kept & (matrix < 0)).any()


@transposable_row
@few
@given(data=st.data())
def test_never_better_than_the_reference(row: Row, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(small(row)))
    matrix = data.draw(scores(2 * pattern.m + 1))
    best = solve(matrix, pattern, Reference()).objective
    found = solve(matrix, pattern, row.solver).objective
    slack = 1e-6 * matrix.double().abs().sum().item()
    if row.exactly or (matrix >= 0).all():
        assert found <= best + slack
    if row.optimal:
        assert found >= best - slack


@transposable_row
def test_quality_on_gaussian_magnitudes(row: Row) -> None:
    matrix = make_scores("|gaussian|", 120, 120, 3)
    for pattern in row.parsed:
        if pattern.m > 5 and not row.larger:
            continue
        best = solve(matrix, pattern, Exact()).objective
        found = solve(matrix, pattern, row.solver).objective
        assert row.floor * best * (1 - 1e-7) <= found <= best * (1 + 1e-7), str(pattern)


@every_row
@few
@given(data=st.data())
def test_the_dtype_does_not_matter(row: Row, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(row.parsed))
    matrix = data.draw(scores(2 * pattern.m + 1, ("|ties|", "zeros", "all equal", "|half zeros|")))
    matrix = (matrix * 4).round() / 4  # exact in all of them
    masks = [
        solve(matrix.to(dtype), pattern, row.solver).mask
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    ]
    assert all(mask == masks[0] for mask in masks)
    array = find_mask(matrix.numpy(), pattern, solver=row.solver).array
    assert isinstance(array, np.ndarray)
    assert array.dtype == bool


@every_row
@few
@given(data=st.data())
def test_strides_and_threads_do_not_matter(row: Row, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(row.parsed))
    matrix = data.draw(scores(3 * pattern.m))
    mask = solve(matrix, pattern, row.solver, threads=1).mask
    column_major = matrix.T.contiguous().T
    spread = torch.full((2 * matrix.shape[0], 3 * matrix.shape[1]), math.nan)[::2, 1::3]
    spread.copy_(matrix)
    assert solve(column_major, pattern, row.solver).mask == mask
    assert solve(spread, pattern, row.solver).mask == mask
    assert solve(matrix, pattern, row.solver, threads=3).mask == mask


@every_row
@few
@given(data=st.data())
def test_magnitudes_are_the_default_scores_of_a_weight(row: Row, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(row.parsed))
    weight = data.draw(scores(2 * pattern.m, ("gaussian", "-|gaussian|", "|gaussian|")))
    mask = find_mask(weight, pattern, solver=row.solver)
    assert mask == find_mask(weight, pattern, solver=row.solver, scores=weight.abs())
    assert mask == find_mask(-weight, pattern, solver=row.solver)


@every_row
@few
@given(data=st.data(), power=st.integers(-40, 40))
def test_a_power_of_two_scales_the_scores_only(row: Row, data: st.DataObject, power: int) -> None:
    pattern = data.draw(st.sampled_from(row.parsed))
    matrix = data.draw(
        scores(2 * pattern.m, ("|gaussian|", "gaussian", "|ties|", "ulps", "|row scales|"))
    )
    plain = solve(matrix, pattern, row.solver).mask
    assert solve(torch.ldexp(matrix, torch.tensor(power)), pattern, row.solver).mask == plain


@transposable_row
@few
@given(data=st.data())
def test_transposition_and_permutation(row: Row, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(row.parsed))
    m = pattern.m
    matrix = data.draw(distinct(2 * m, 2 * m))
    plain = solve(matrix, pattern, row.solver)
    turned = solve(matrix.T, pattern, row.solver)
    order = torch.tensor(data.draw(st.permutations(range(m))))
    rows = torch.cat([order, m + order])  # within tiles, and the tiles exchanged
    cols = torch.cat([m + order, order])
    moved = solve(matrix[rows][:, cols], pattern, row.solver)
    if row.optimal:
        assert turned.objective == moved.objective == plain.objective
    if row.moves:
        assert torch.equal(turned.mask.tensor, plain.mask.tensor.T)
        assert torch.equal(moved.mask.tensor, plain.mask.tensor[rows][:, cols])


@transposable_row
@few
@given(data=st.data())
def test_tiles_are_independent(row: Row, data: st.DataObject) -> None:
    """Also covers blocks of tiles that are partly filled, and those of several shapes."""
    pattern = data.draw(st.sampled_from(row.parsed))
    m = pattern.m
    matrix = data.draw(tiles(m, FAMILIES, down=3, across=7))[:-1, : 7 * m - 1]
    together = solve(matrix, pattern, row.solver).mask.tensor
    top, left = m * data.draw(st.integers(0, 2)), m * data.draw(st.integers(0, 6))
    block, held = (x[top : top + m, left : left + m] for x in (matrix, together))
    alone = solve(block, pattern, row.solver).mask.tensor
    if row.alone:
        assert torch.equal(held, alone)
    if row.optimal:
        values = block.double()
        scale = values[alone].abs().sum().item()
        assert values[held].sum().item() == pytest.approx(
            values[alone].sum().item(), abs=2e-6 * scale
        )


@transposable_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_infinite_scores(row: Row, dtype: torch.dtype) -> None:
    """One +inf in each row and column is kept, one -inf is not."""
    matrix = make_scores("|gaussian|", 8, 8, 5).to(dtype)
    matrix.diagonal().fill_(math.inf)
    matrix.diagonal(2).fill_(-math.inf)
    kept = solve(matrix, "2:4T", row.solver).mask.tensor
    assert kept.diagonal().all()
    assert not kept.diagonal(2).any()


@transposable_row
@pytest.mark.parametrize("family", ["|huge 1e38|", "|denormals|", "|outlier 1e8|"])
def test_the_ends_of_the_double_range(row: Row, family: str) -> None:
    scale = {"|huge 1e38|": 1e269, "|denormals|": 1e-280, "|outlier 1e8|": 1e-300}[family]
    matrix = make_scores(family, 8, 12, 7).double() * scale
    mask = solve(matrix, "2:4T", row.solver).mask
    best = solve(matrix, "2:4T", Reference()).objective
    found = matrix[mask.tensor].sum().item()
    assert keeps(mask.tensor, mask.pattern, exactly=row.exactly)
    assert row.floor * 0.95 * best <= found <= best * (1 + 1e-6)


@every_row
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (1, 9), (9, 1)])
def test_sizes_zero_and_one(row: Row, shape: tuple[int, int]) -> None:
    for pattern in row.parsed:
        mask = solve(torch.ones(shape), pattern, row.solver).mask
        assert mask.shape == shape
        if pattern.transposable and shape == (1, 1):
            assert mask.tensor.item()


@every_row
def test_nan_is_an_error(row: Row) -> None:
    matrix = torch.ones(9, 13)
    matrix[5, 11] = math.nan
    for pattern in row.parsed:
        with pytest.raises(ScoresError, match=r"index \(5, 11\) of shape .* is NaN.*nan_to_num"):
            solve(matrix, pattern, row.solver)


@every_row
def test_a_pattern_of_another_structure_is_an_error(row: Row) -> None:
    for pattern in ("2:4", "2:4T", "2:4S", "50%"):
        if row.solver.accepts(Pattern.parse(pattern)):
            assert solve(torch.ones(4, 4), pattern, row.solver).mask.shape == (4, 4)
        else:
            with pytest.raises(
                SolverError, match=f"{row.solver.name}.*does not find.*solver='auto'"
            ):
                solve(torch.ones(4, 4), pattern, row.solver)
