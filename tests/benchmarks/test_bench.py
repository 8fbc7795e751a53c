"""The benchmark runs, its gate fails when it must, and its figures are what they say."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import transposable
from benchmarks import gate, isolated, solve, tables, targets
from benchmarks.families import HOSTILE
from benchmarks.gate import Candidate, GateError, GateReport
from benchmarks.harness import Contender, Sample, Series, interleave, ratio, timed
from benchmarks.inputs import as_matrix, as_tiles
from benchmarks.peers import PEERS
from benchmarks.peers.base import Peer, integer_scores
from benchmarks.peers.ortools_flow import optimal_masks
from benchmarks.peers.torch_greedy import greedy
from benchmarks.prototype import Unavailable
from benchmarks.quality import compare, kept_per_tile
from transposable import Mask, Pattern, Solution

QUICK = ["--quick", "--size", "256", "--patterns", "4:8"]


@pytest.fixture
def absent(tmp_path: Path) -> list[str]:
    """Options that name a prototype that is not there."""
    return ["--prototype", str(tmp_path / "absent.cpp")]


def test_a_quick_run_measures_everything_but_paths(
    tmp_path: Path, absent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(2)
    json_file, markdown, plot = (tmp_path / name for name in ("r.json", "r.md", "r.png"))
    outputs = ["--json", str(json_file), "--markdown", str(markdown), "--plot", str(plot)]
    parts = ["--parts", "speed,memory,peers"]  # the paths have a test of their own
    assert solve.main([*QUICK, *absent, *parts, *outputs]) == 0
    assert torch.get_num_threads() == 2  # as it was

    results = json.loads(json_file.read_text())
    assert results["gate"]["tiles_against_oracle"] == (len(HOSTILE) + 1) * gate.ACROSS
    assert results["gate"]["worst_difference"] <= 1e-6
    measured = results["patterns"]["4:8T"]
    assert set(measured) == {"speed", "memory", "peers"}
    for name in ("1 thread", "bf16", "int4 grid", "half zeros", "all equal"):
        assert measured["speed"]["times"][name]["wall_median_s"] > 0
        assert measured["speed"]["times"][name]["rounds"] == 3
    assert measured["memory"]["input_output_bytes"] == 256 * 256 * 5
    rows = {row["name"]: row for row in measured["peers"]}
    assert {"exact", "ortools", "networkx", "highs", "torch_dykstra", "torch_greedy"} <= set(rows)
    for row in rows.values():
        assert row["valid"]
        assert row["seconds_per_matrix"] > 0
        assert row["worst_error"] >= row["mean_error"] >= -1e-6
        if row["exact"]:
            assert row["worst_error"] <= 1e-6
            assert row["exactly_n"] == 1
    assert rows["torch_greedy"]["mean_error"] > 1e-3  # a greedy mask that is optimal is a bug here
    assert not any(row["judged"] for row in results["targets"])

    printed = capsys.readouterr().out
    assert "skipped: prototype: no file" in printed
    assert any("prototype" in line for line in results["skipped"])
    assert "these figures mean nothing" in printed
    text = markdown.read_text()
    assert text.startswith(tables.BEGIN)
    assert "OR-tools min-cost flow" in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in json.dumps(results["machine"])
    assert platform.node() not in results["machine"].values()


def _find(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Candidate:
    """The exact solver with its masks spoilt by ``change(weight, kept)``."""
    right = Candidate()

    def find(weight: torch.Tensor, pattern: Pattern, *, threads: int) -> Mask:
        mask = right.find(weight, pattern, threads=threads)
        return Mask(change(weight, mask.tensor.clone()), pattern)

    return Candidate(find, right.solve)


def _shifted(weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return as_matrix(as_tiles(kept, 8).roll(1, 2), weight.shape[1] // 8)


def _one_too_few(weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    kept[tuple(kept.nonzero()[-1])] = False
    return kept


def _wrong_last_tile(weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    if weight.shape == (256, 256):  # right on all the families, wrong where it is timed
        kept[-8:, -8:] = kept[-8:, -8:].roll(1, 1)
    return kept


@pytest.mark.parametrize("change", [_shifted, _one_too_few, _wrong_last_tile])
def test_the_gate_stops_a_wrong_mask(
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    tmp_path: Path,
    absent: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "r.json"
    status = solve.main([*QUICK, *absent, "--json", str(results)], _find(change))
    printed = capsys.readouterr()
    assert status == 1
    assert printed.out == ""
    assert "correctness gate failed, so no speed is reported\ngate: " in printed.err
    assert not results.exists()


def _without_potentials(solution: Solution) -> Solution:
    return dataclasses.replace(solution, potentials=None)


def _wrong_potentials(solution: Solution) -> Solution:
    assert solution.potentials is not None
    zero = torch.zeros_like(solution.potentials.rows)
    return dataclasses.replace(solution, potentials=transposable.Potentials(zero, zero))


@pytest.mark.parametrize("spoil", [_without_potentials, _wrong_potentials])
def test_the_gate_stops_a_wrong_certificate(spoil: Callable[[Solution], Solution]) -> None:
    right = Candidate()
    candidate = Candidate(right.find, lambda scores, pattern: spoil(right.solve(scores, pattern)))
    with pytest.raises(GateError, match=r"potentials|duality gap"):
        gate.check_families(candidate, Pattern.parse("2:4T"), 1, 0, GateReport())


@pytest.mark.parametrize("pattern", ["1:4T", "3:8T", "8:16T", "16:32T"])
def test_the_gate_passes_the_exact_solver(pattern: str) -> None:
    report = GateReport()
    gate.check_families(Candidate(), Pattern.parse(pattern), 1, 1, report)
    assert report.tiles_against_oracle == (len(HOSTILE) + 1) * gate.ACROSS
    assert report.worst_difference <= 1e-6


PROTOTYPE = """
#include <cstdint>
#include <cstring>
extern "C" int exact_solve(const float*, long R, long C, int, int, uint8_t* mask, float*, int,
                           double*) { std::memset(mask, 0, R * C); return %d; }
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build a prototype with")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (PROTOTYPE % 0, "the prototype's mask does not keep exactly 4 of 8"),
        (PROTOTYPE % -2, "does not take 4:8T on 256x256 (its status is -2"),
        ("int main( {", "could not compile it"),
        ("int other() { return 0; }", "does not offer exact_solve"),
    ],
)
def test_a_prototype_that_cannot_be_compared_is_left_out_visibly(
    source: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prototype.cpp"
    path.write_text(source)
    assert solve.main([*QUICK, "--parts", "speed", "--prototype", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"skipped: prototype{', 4:8T' if 'exact_solve(' in source else ''}: " in printed
    assert reason in printed.replace("\n", " ")


def test_rounds_are_interleaved_and_ratios_taken_within_them() -> None:
    order: list[str] = []

    def contender(name: str, walls: list[float]) -> Contender:
        left = iter(walls)

        def measure() -> Sample:
            order.append(name)
            return Sample(next(left), 2.0)

        return Contender(name, measure)

    # A machine that slows down tenfold in the last round changes neither ratio.
    a = contender("a", [9.0, 2.0, 4.0, 30.0])
    b = contender("b", [9.0, 1.0, 2.0, 10.0])
    series = interleave([a, b], rounds=3, warmup=1)
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert series["a"].of("wall") == [2.0, 4.0, 30.0]
    assert ratio(series["a"], series["b"]) == {"median": 2.0, "low": 2.0, "high": 3.0}
    assert series["a"].summary()["wall_min_s"] == 2.0
    assert ratio(series["a"], series["b"], "cpu")["median"] == 1.0
    with pytest.raises(ValueError, match="same name"):
        interleave([a, a], rounds=1)


def test_a_sample_tells_waiting_from_working() -> None:
    import time

    waiting = timed(lambda: time.sleep(0.05))()
    assert waiting.wall >= 0.05 > waiting.cpu
    assert Series([waiting]).median("cpu") == waiting.cpu


def test_quality_of_a_known_mask() -> None:
    tile = torch.tensor([[3.0, 1.0], [2.0, -4.0]])
    matrix = torch.cat([tile, tile], 1)
    best = kept_per_tile(matrix, torch.eye(2, dtype=torch.bool).repeat(1, 2), 2)
    assert best.tolist() == [7.0, 7.0]
    kept = torch.tensor([[True, False, False, False], [False, True, True, False]])
    quality = compare(matrix, kept, best, 1, 2)
    assert quality.mean_error == pytest.approx((0 + 5 / 7) / 2)
    assert quality.worst_error == pytest.approx(5 / 7)
    assert quality.exactly_n == 0.5
    assert quality.valid
    assert not compare(matrix, torch.ones_like(kept), best, 1, 2).valid


@pytest.mark.parametrize("family", sorted(HOSTILE))
def test_integer_scores_keep_the_order_and_the_top_bits(family: str) -> None:
    tiles = HOSTILE[family](3, 4, 4, torch.Generator().manual_seed(0))
    integers = integer_scores(tiles, 44).double()
    largest = tiles.double().abs().amax((1, 2), keepdim=True)
    assert integers.abs().max() <= 2**44
    back = integers / integers.abs().amax((1, 2), keepdim=True).clamp(min=1) * largest
    assert (
        torch.allclose(back, tiles.double(), rtol=1e-7, atol=0)
        or ((back - tiles.double()).abs() <= largest * 2.0**-42).all()
    )


def _naive_greedy(tile: torch.Tensor, n: int) -> torch.Tensor:
    kept = torch.zeros(tile.shape, dtype=torch.bool)
    for place in tile.flatten().argsort(descending=True).tolist():
        i, j = divmod(place, len(tile))
        if kept[i].sum() < n and kept[:, j].sum() < n:
            kept[i, j] = True
    return kept


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (5, 8), (8, 16)])
def test_batched_greedy_is_greedy(n: int, m: int) -> None:
    tiles = torch.rand(7, m, m, generator=torch.Generator().manual_seed(n))
    assert torch.equal(greedy(tiles, n), torch.stack([_naive_greedy(tile, n) for tile in tiles]))


@pytest.mark.parametrize("peer", [p for p in PEERS if not p.missing()], ids=lambda peer: peer.name)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 8), (8, 16)])
def test_every_peer_keeps_at_most_n_and_the_exact_ones_the_optimum(
    peer: Peer, n: int, m: int
) -> None:
    tiles = torch.rand(8, m, m, generator=torch.Generator().manual_seed(m))
    matrix = as_matrix(tiles, 1)
    best = kept_per_tile(matrix, as_matrix(optimal_masks(tiles, n, 44), 1), m)
    kept = peer.run(matrix if peer.whole else tiles, n, m)
    quality = compare(matrix, kept if peer.whole else as_matrix(kept, 1), best, n, m)
    assert quality.valid
    assert quality.worst_error >= -1e-6
    if peer.exact:
        assert quality.worst_error <= 1e-6
        assert quality.exactly_n == 1
    if peer.name == "torch_dykstra":
        assert quality.exactly_n == 1
        assert quality.mean_error < 0.02


def test_peak_memory_is_that_of_weight_and_mask() -> None:
    process = isolated.PeakMemory("4:8T", 2048, 0)
    try:
        measured = process.result()
    except Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        process.close()
    assert measured["input_output_bytes"] == 2048 * 2048 * 5
    assert 0.9 < measured["ratio"] < 1.3


REPORTS_ITS_PATH = """
import os
import transposable._core as core
asked = os.environ.get("TRANSPOSABLE_ISA")
core.isa = lambda: "avx2" if asked == "avx512" else asked
"""


def test_only_a_path_that_the_core_confirms_is_timed(
    tmp_path: Path, absent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A core on a machine without AVX-512: asked for it, it takes AVX2 and says so.
    (tmp_path / "sitecustomize.py").write_text(REPORTS_ITS_PATH)
    monkeypatch.syspath_prepend(tmp_path)
    results_file = tmp_path / "r.json"
    command = [*QUICK, *absent, "--parts", "paths", "--json", str(results_file)]
    assert solve.main(command) == 0
    results = json.loads(results_file.read_text())
    paths = results["patterns"]["4:8T"]["paths"]
    assert set(paths["times"]) == {"avx2", "baseline"}
    assert paths["times"]["avx2"]["rounds"] == 3
    assert paths["ratios"] == {}  # there is nothing to be relative to
    (skipped,) = results["skipped"]
    assert "TRANSPOSABLE_ISA=avx512: the native core took 'avx2' instead" in skipped


def _results(**figures: Any) -> dict[str, Any]:
    ratios = {
        name: {"median": value, "low": value, "high": value} for name, value in figures.items()
    }
    return {
        "quick": False,
        "size": 8192,
        "machine": {
            "cpu": "a processor",
            "instruction_sets": ["avx2"],
            "cores": 2,
            "memory_gb": 8.0,
            "python": "3.11",
            "torch": "2.13",
        },
        "gate": {"summary": "gate passed"},
        "patterns": {"4:8T": {"speed": {"times": {}, "ratios": ratios}}},
        "skipped": [],
    }


def test_targets_are_judged_both_ways_and_strict_says_so(tmp_path: Path) -> None:
    for two_threads, met in ((1.8, True), (1.6, False)):
        results = _results(**{"prototype, cpu": 0.9, "speed_up_2_threads": two_threads})
        results["targets"] = targets.judge(results)
        assert [(row["limit"], row["met"]) for row in results["targets"]] == [
            (1.0, True),
            (1.7, met),
        ]
        path = tmp_path / "results.json"
        path.write_text(json.dumps(results))
        assert solve.main(["--from-json", str(path), "--strict"]) == (0 if met else 3)
        assert solve.main(["--from-json", str(path)]) == 0


def test_markdown_goes_between_the_markers_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = _results(**{"prototype, cpu": 0.9}) | {"targets": []}
    source, readme = tmp_path / "results.json", tmp_path / "README.md"
    source.write_text(json.dumps(results))
    command = ["--from-json", str(source), "--markdown", str(readme)]
    readme.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    for _ in range(2):
        assert solve.main(command) == 0
        text = readme.read_text()
        assert text.startswith(f"before\n{tables.BEGIN}\n")
        assert text.endswith(f"{tables.END}\nafter\n")
        assert "a processor" in text
        assert "old" not in text
    readme.write_text("no markers")
    assert solve.main(command) == 4
    assert readme.read_text() == "no markers"
    assert "needs one line" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--patterns", "8:4"], ["--size", "100"], ["--parts", "speed,taste"], ["--repeats", "-1"]],
)
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        solve.main(arguments)
    assert refused.value.code == 2


def test_numbers_as_a_reader_sees_them() -> None:
    assert [tables.seconds(x) for x in (0.0523, 0.52, 3.14, 28.2, 1399.0)] == [
        "52.3 ms",
        "520 ms",
        "3.1 s",
        "28 s",
        "1,399 s",
    ]
    assert [tables.error(x) for x in (-1e-8, 7.4e-4, 0.26)] == ["0", "0.074 %", "26 %"]
    assert [tables.share(x) for x in (1.0, 0.99999, 0.128)] == ["100 %", "99.9 %", "12.8 %"]
