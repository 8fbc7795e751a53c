"""The checks of the interpreter on a GPU, and what only a GPU shows: sizes, streams, graphs."""

from __future__ import annotations

import math

import pytest
import torch

import checks
import other_checks
import search_checks
import transposable
from score_families import FAMILIES
from transposable import (
    Exact,
    Greedy,
    RowWise,
    Solver,
    TwoApprox,
    certify,
    fill_mask,
    find_mask,
    solve,
)

SMALL = [(2, 4), (1, 4), (3, 4), (4, 8), (3, 8), (8, 16), (15, 16), (16, 32)]


@pytest.mark.parametrize(("n", "m"), SMALL, ids=str)
def test_every_family(n: int, m: int) -> None:
    checks.every_family("cuda", list(FAMILIES), n, m, 8)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiles_of_4_by_the_wave(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.by_the_wave(monkeypatch)
    checks.every_family("cuda", list(FAMILIES), n, 4, 8)
    checks.ragged("cuda", "ties", n, 4)
    checks.strides("cuda", n, 4)


@pytest.mark.parametrize("name", ["gaussian", "ties", "infinities"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (5, 8), (8, 16), (16, 32)], ids=str)
def test_ragged(name: str, n: int, m: int) -> None:
    checks.ragged("cuda", name, n, m)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (8, 16), (16, 32)], ids=str)
def test_dtypes_strides_nans_and_twins(n: int, m: int) -> None:
    checks.dtypes("cuda", n, m)
    checks.strides("cuda", n, m)
    checks.nans("cuda", n, m)
    other_checks.against_twins("cuda", n, m)


# Kernels are compiled for each dtype and sign; what is left out here is for the interpreter.
@pytest.mark.parametrize(
    ("n", "m", "dtype"),
    [
        (2, 4, torch.float32),
        (3, 8, torch.bfloat16),
        (8, 16, torch.float16),
        (16, 32, torch.bfloat16),
    ],
    ids=str,
)
def test_repair_and_search(n: int, m: int, dtype: torch.dtype) -> None:
    names = [*FAMILIES, "-|gaussian|"]
    search_checks.families("cuda", names, n, m, search_checks.SOLVERS[3:], (dtype,))


def test_strides_nans_and_cropped_tiles_of_the_search() -> None:
    search_checks.strides("cuda", 2, 4)
    search_checks.nans("cuda", 2, 4)
    search_checks.cropped("cuda", 2, 4)
    search_checks.odd_masks("cuda", 2, 4)
    search_checks.empty("cuda")


@pytest.mark.parametrize("pattern", ["2:4T", "4:8T"])
@pytest.mark.parametrize("solver", [Greedy(), TwoApprox(repair=True)], ids=str)
def test_large_masks_of_the_search(pattern: str, solver: Solver) -> None:
    weight = torch.randn(1024, 2048, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = find_mask(weight, pattern, solver=solver)
    assert find_mask(weight.cuda(), pattern, solver=solver) == wanted


def test_ways_in(monkeypatch: pytest.MonkeyPatch) -> None:
    checks.empty("cuda")
    other_checks.public_functions("cuda", monkeypatch)
    other_checks.filled_in_place("cuda")
    other_checks.refreshed("cuda")
    other_checks.by_way_of_the_host("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pattern", ["2:4T", "4:8T", "8:16T", "16:32T"])
def test_large(pattern: str, dtype: torch.dtype) -> None:
    weight = torch.randn(1024, 2048, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores = weight.abs()
    solution = solve(scores.cuda(), pattern)
    assert certify(scores, solution.mask, solution.potentials).optimal
    assert solution.objective == pytest.approx(solve(scores, pattern).objective, rel=1e-6)
    assert find_mask(weight.cuda(), pattern) == solution.mask


def test_results_do_not_depend_on_the_run() -> None:
    """The order in which tiles are listed differs from run to run; masks must not."""
    weight = torch.randn(2048, 2048, device="cuda").round(decimals=1)
    first = find_mask(weight, "8:16T").tensor
    for _ in range(5):
        assert torch.equal(find_mask(weight, "8:16T").tensor, first)


@pytest.mark.parametrize(
    ("pattern", "solver"),
    [
        ("2:4T", Exact()),
        ("4:8T", Exact()),
        ("8:16T", Exact()),
        ("4:8T", Greedy()),
        ("4:8T", TwoApprox(repair=True)),
    ],
    ids=str,
)
def test_captured_in_a_graph(pattern: str, solver: Solver) -> None:
    weight = torch.randn(256, 512, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(weight, dtype=torch.bool)
    fill_mask(out, weight, pattern, solver=solver)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        nans = fill_mask(out, weight, pattern, solver=solver)
    for _ in range(3):
        weight.normal_()
        graph.replay()
        assert torch.equal(out, find_mask(weight, pattern, solver=solver).tensor)
        assert int(nans) == 0
    weight[0, 0] = math.nan
    graph.replay()
    assert int(nans) == 1


def test_no_waiting_for_the_device() -> None:
    weight = torch.randn(260, 256, device="cuda")
    out = torch.empty_like(weight, dtype=torch.bool)
    solvers = (Exact(), RowWise(), Greedy(), TwoApprox(repair=True))
    for wait in ("default", "error"):  # compiled, then watched
        torch.cuda.set_sync_debug_mode(wait)
        try:
            for solver in solvers:
                pattern = "4:8" if isinstance(solver, RowWise) else "4:8T"
                fill_mask(out, weight, pattern, solver=solver)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        weight = torch.randn(512, 512, device="cuda")
        found = find_mask(weight, "4:8T").tensor
    stream.synchronize()
    assert transposable.verify(found, "4:8T")


def test_another_gpu_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    weight = torch.randn(64, 64, device="cuda:1")
    assert find_mask(weight, "4:8T").tensor.device == weight.device
    assert torch.cuda.current_device() == 0


def test_more_than_2_31_weights() -> None:
    """Offsets beyond 32 bits; the last rows are compared with those solved alone."""
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs 40 GiB of GPU memory")
    weight = torch.randn(65536 + 8, 32768 + 8, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(weight, dtype=torch.bool)
    assert int(fill_mask(out, weight, "4:8T")) == 0
    assert torch.equal(out[-64:], find_mask(weight[-64:], "4:8T").tensor)
