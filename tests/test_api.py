"""find_mask and solve: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import transposable
from oracle import assert_optimal
from transposable import (
    Auto,
    Exact,
    Layout,
    LayoutError,
    Mask,
    Pattern,
    PatternError,
    RowWise,
    ScoresError,
    Solution,
    SolverError,
    Status,
    certify,
    find_mask,
    solve,
)
from transposable.layout import blocks

DTYPES: list[Any] = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    np.float32,
    np.float64,
    np.float16,
    ml_dtypes.bfloat16,
]
LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "linear": ((12, 20), {}),
    "ragged": ((10, 7), {}),
    "conv1d": ((8, 12, 3), {"layout": "conv"}),
    "conv2d": ((8, 6, 3, 2), {"layout": "conv"}),
    "conv3d": ((8, 4, 2, 1, 2), {"layout": "conv"}),
    "grouped": ((12, 4, 2, 2), {"layout": "conv", "groups": 3}),
    "layout object": ((12, 4, 2, 2), {"layout": Layout("conv", 3)}),
    "stacked": ((2, 3, 8, 9), {"layout": "stacked"}),
}


def weights(shape: tuple[int, ...], dtype: Any, contiguity: str) -> Any:
    """Gaussian weights of this dtype (torch's or numpy's) and these strides."""
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    if contiguity == "strided":
        wide = np.zeros([2 * side for side in shape], np.float32)
        every_other = wide[tuple(slice(None, None, 2) for _ in shape)]
        every_other[...] = values
        values = every_other
    elif contiguity == "transposed":
        values = np.ascontiguousarray(values.transpose()).transpose()
    if isinstance(dtype, torch.dtype):
        # .to would make the copy contiguous
        tensor = torch.empty_strided(
            shape, [stride // 4 for stride in values.strides], dtype=torch.float32
        ).to(dtype)
        return tensor.copy_(torch.from_numpy(values))
    return values.astype(dtype, order="K")


@pytest.mark.parametrize("contiguity", ["contiguous", "transposed", "strided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_dtype_layout_and_stride(name: str, dtype: Any, contiguity: str) -> None:
    """The mask is optimal tile by tile for the magnitudes that the caller's array holds."""
    shape, options = LAYOUTS[name]
    weight = weights(shape, dtype, contiguity)
    mask = find_mask(weight, "2:4T", **options)
    assert type(mask.array) is (torch.Tensor if isinstance(dtype, torch.dtype) else np.ndarray)
    assert tuple(mask.array.shape) == shape
    assert mask.violations() == 0
    as_torch = (
        weight.double()
        if isinstance(weight, torch.Tensor)
        else torch.from_numpy(weight.astype(np.float64))
    )
    read = mask.layout
    matrices, kept = read.matrices(as_torch.abs()).numpy(), read.matrices(mask.tensor).numpy()
    for scores, chosen in zip(matrices, kept, strict=True):
        for top in range(0, scores.shape[0], 4):
            for left in range(0, scores.shape[1], 4):
                at = np.s_[top : top + 4, left : left + 4]
                assert_optimal(scores[at], chosen[at], 2, 4, f"{name} at {top}, {left}")


@pytest.mark.parametrize("name", LAYOUTS)
def test_solve_carries_a_proof(name: str) -> None:
    shape, options = LAYOUTS[name]
    scores = torch.from_numpy(weights(shape, np.float64, "contiguous"))
    solution = solve(scores, "2:4T", **options)
    assert isinstance(solution, Solution)
    assert solution.status is Status.OPTIMAL
    assert solution.status.ok
    assert solution.objective == pytest.approx(scores[solution.mask.tensor].sum().item())
    assert solution.bound == pytest.approx(solution.objective, rel=1e-6)
    assert solution.gap <= 1e-6
    assert solution.potentials is not None
    certificate = certify(scores, solution.mask, solution.potentials)
    assert certificate
    assert certificate.objective == pytest.approx(solution.objective)
    assert certificate.bound == pytest.approx(solution.bound)


def test_scores_instead_of_magnitudes() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(8, 8, generator=generator)
    scores = torch.randn(8, 8, generator=generator, dtype=torch.float64) - 1
    mask = find_mask(weight, "2:4T", scores=scores)
    assert mask == find_mask(weight.numpy(), "2:4T", scores=scores.numpy())
    assert type(find_mask(weight.numpy(), "2:4T", scores=scores).array) is np.ndarray
    for tile, kept in zip(
        blocks(scores[None], 4).reshape(-1, 4, 4),
        blocks(mask.tensor[None], 4).reshape(-1, 4, 4),
        strict=True,
    ):
        assert_optimal(tile.numpy(), kept.numpy(), 2, 4)
    # The weight itself as scores: its sign counts.
    signed = find_mask(weight, "2:4T", scores=weight)
    assert weight[signed.tensor].sum() > weight[find_mask(weight, "2:4T").tensor].sum()
    assert find_mask(weight, "2:4T", scores=weight.abs()) == find_mask(weight, "2:4T")


def test_negative_scores_still_fill_a_full_tile() -> None:
    solution = solve(-torch.ones(8, 8), "2:4T")
    assert solution.mask.density == 0.5
    assert solution.objective == solution.bound == -32.0
    assert solution.gap == 0.0


@pytest.mark.parametrize("pattern", ["2:4T", "2:4", "2:4S", "50%"])
def test_patterns_and_their_solvers(pattern: str) -> None:
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(5))
    solution = solve(weight.abs(), pattern)
    assert solution.status is Status.OPTIMAL
    assert solution.mask.density == 0.5
    assert solution.gap == pytest.approx(0.0, abs=1e-9)
    assert find_mask(weight, Pattern.parse(pattern)) == solution.mask
    name = solution.stats["solver"]
    assert find_mask(weight, pattern, solver=name) == solution.mask
    assert solution.stats["seconds"] >= 0


@pytest.mark.parametrize("solver", ["exact", Exact, Exact(), "auto", Auto, Auto()])
def test_ways_to_name_a_solver(solver: Any) -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(6))
    assert find_mask(weight, "2:4T", solver=solver) == find_mask(weight, "2:4T")
    assert solve(weight, "2:4T", solver).stats["solver"] == "exact"


@pytest.mark.parametrize("solver", ["", "Exact", "magic", None, 3, Pattern, object()])
def test_an_unknown_solver(solver: Any) -> None:
    with pytest.raises(SolverError, match=r"^solver: received .*; the solvers are auto, exact, "):
        find_mask(torch.ones(4, 4), "2:4T", solver=solver)


def test_a_solver_of_another_pattern() -> None:
    with pytest.raises(
        SolverError, match=r"^find_mask: solver 'exact' .* pattern 2:4 .*'row_wise'"
    ):
        find_mask(torch.ones(4, 4), "2:4", solver="exact")
    with pytest.raises(SolverError, match=r"^solve: solver 'row_wise' .* pattern 2:4T .*'exact'"):
        solve(torch.ones(4, 4), "2:4T", RowWise)


def test_threads_default_to_torchs() -> None:
    scores = torch.rand(256, 256)
    for count in (1, 2):
        torch.set_num_threads(count)
        assert solve(scores, "2:4T").stats["threads"] == count
    assert solve(scores, "2:4T", threads=3).stats["threads"] == 3
    assert find_mask(scores, "2:4T", threads=7) == find_mask(scores, "2:4T")


@pytest.mark.parametrize("threads", [0, -1, True, 1.0, "2", 2**40])
def test_wrong_threads(threads: Any) -> None:
    with pytest.raises(SolverError, match=r"^find_mask: received threads=.*an integer from 1 to"):
        find_mask(torch.ones(4, 4), "2:4T", threads=threads)


@pytest.mark.parametrize("pattern", ["2:4T", "2:4", "2:4S", "50%"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_nan_is_named_by_its_place(name: str, pattern: str) -> None:
    shape, options = LAYOUTS[name]
    rng = np.random.default_rng(len(name))
    for dtype in (torch.float32, torch.bfloat16):
        place = tuple(int(rng.integers(side)) for side in shape)
        weight = torch.randn(shape, dtype=torch.float32).to(dtype)
        weight[place] = math.nan
        with pytest.raises(ScoresError) as error:
            find_mask(weight, pattern, **options)
        assert f"find_mask: the score at index {place} of shape {shape} is NaN" in str(error.value)
        with pytest.raises(ScoresError, match="solve: the score at index"):
            solve(weight, pattern, **options)


def test_nan_of_either_sign_and_payload_in_every_dtype() -> None:
    for dtype in DTYPES[:4]:
        for value in (math.nan, -math.nan):
            scores = torch.full((5, 5), value, dtype=dtype)
            with pytest.raises(ScoresError, match=r"index \(\d, \d\) of shape \(5, 5\) is NaN"):
                find_mask(scores, "2:4T", threads=2)


def test_infinities_are_allowed() -> None:
    scores = torch.rand(8, 8)
    scores[0, 5] = math.inf
    scores[3, 3] = -math.inf
    solution = solve(scores, "2:4T")
    assert solution.mask.tensor[0, 5]
    assert not solution.mask.tensor[3, 3]
    assert solution.objective == math.inf
    assert solution.gap == 0.0
    scores[0, :] = -math.inf  # two of these must be kept in either tile
    scores[4, 4] = math.inf
    mixed = solve(scores, "2:4T")
    assert mixed.status is Status.OPTIMAL
    assert mixed.gap == 0.0
    assert mixed.mask.tensor[4, 4]


def test_scores_of_another_shape() -> None:
    with pytest.raises(
        ScoresError, match=r"scores of shape \(4, 8\) for a weight of shape \(8, 4\)"
    ):
        find_mask(torch.ones(8, 4), "2:4T", scores=torch.ones(4, 8))
    with pytest.raises(ScoresError, match=r"^find_mask \(scores\): received dtype torch.int64"):
        find_mask(torch.ones(8, 4), "2:4T", scores=torch.ones(8, 4).long())


def test_layouts_that_do_not_fit() -> None:
    with pytest.raises(LayoutError, match=r"^find_mask: received a 4-D tensor .* 'linear', which"):
        find_mask(torch.ones(4, 4, 3, 3), "2:4T")
    with pytest.raises(LayoutError, match="groups must divide the output channels"):
        solve(torch.ones(4, 4, 3, 3), "2:4T", layout="conv", groups=3)


@pytest.mark.parametrize("pattern", ["2:4X", "4:4T", "0:4T", "1:65T", 24, None])
def test_patterns_that_are_none(pattern: Any) -> None:
    with pytest.raises(PatternError):
        find_mask(torch.ones(4, 4), pattern)


@pytest.mark.parametrize("pattern", ["2:4T", "2:4", "2:4S", "50%", "32:64T"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((0, 0), {}),
        ((0, 8), {}),
        ((8, 0), {}),
        ((1, 1), {}),
        ((1, 9), {}),
        ((9, 1), {}),
        ((0, 8, 3, 3), {"layout": "conv"}),
        ((8, 0, 3), {"layout": "conv"}),
        ((8, 8, 0, 3), {"layout": "conv"}),
        ((0, 4, 4), {"layout": "stacked"}),
        ((2, 0, 4), {"layout": "stacked"}),
        ((2, 4, 0), {"layout": "stacked"}),
    ],
)
def test_sizes_zero_and_one(pattern: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    weight = -torch.ones(shape)
    mask = find_mask(weight, pattern, **options)
    assert mask.shape == shape
    assert mask.violations() == 0
    if math.prod(shape) == 1:
        assert mask.tensor.all()
    solution = solve(weight.abs(), pattern, **options)
    assert solution.status is Status.OPTIMAL
    assert solution.gap == 0.0
    assert solution.objective == solution.mask.tensor.sum()


class Careless(Exact):
    """An exact solver that spoils its mask."""

    name = "careless"

    def run(self, problem: Any, *, certify: bool) -> Any:
        outcome = super().run(problem, certify=certify)
        outcome.kept[:] = True
        return outcome


class Humble(Exact):
    """An exact solver that could not prove its optimum."""

    name = "humble"

    def run(self, problem: Any, *, certify: bool) -> Any:
        outcome = super().run(problem, certify=certify)
        return type(outcome)(outcome.kept, outcome.bound * 2)


@pytest.mark.parametrize(
    ("solver", "status"), [(Careless(), Status.INFEASIBLE), (Humble(), Status.NOT_OPTIMAL)]
)
def test_a_broken_promise_raises_or_is_told(solver: Exact, status: Status) -> None:
    scores = torch.rand(8, 8) + 1
    with pytest.raises(SolverError, match=rf"^solve: {solver.name} .*{status.name} .*throw=False"):
        solve(scores, "2:4T", solver)
    solution = solve(scores, "2:4T", solver, throw=False)
    assert solution.status is status
    assert not solution.status.ok
    assert isinstance(solution.mask, Mask)
    if status is Status.NOT_OPTIMAL:
        assert solution.gap == pytest.approx(1.0)


def test_gap() -> None:
    mask = find_mask(torch.ones(4, 4), "2:4T")

    def gap(objective: float, bound: float, status: Status = Status.FEASIBLE) -> float:
        return Solution(mask, objective, bound, status).gap

    assert gap(4.0, 5.0) == 0.25
    assert gap(-4.0, -3.0) == 0.25
    assert gap(4.0, 4.0) == gap(0.0, 0.0) == gap(math.inf, math.inf) == 0.0
    assert gap(4.0, math.nextafter(4.0, 0)) == 0.0  # rounding below the objective
    assert gap(4.0, math.inf) == gap(0.0, 1.0) == math.inf
    assert gap(math.inf, 1e9, Status.OPTIMAL) == gap(math.nan, 1e9, Status.OPTIMAL) == 0.0
    assert gap(math.inf, 1e9) == gap(math.nan, 1e9) == math.inf


def test_public_names() -> None:
    for name in transposable.__all__:
        assert getattr(transposable, name) is not None
        if name != "__version__":
            assert (getattr(transposable, name).__doc__ or "").strip(), name
    assert sorted(transposable.__all__) == transposable.__all__
