"""The matmul benchmark runs, its gate fails when it must, and its targets are judged both ways."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import matmul, matmul_tables, matmul_targets, matmul_worker, onednn
from benchmarks.gate import GateError
from benchmarks.matmul_cases import Build, Job, measure, rounds
from benchmarks.matmul_gate import TOLERANCE, Judge, MatmulGate
from benchmarks.matmul_peers import DIRECTIONS, Operands, dense_peers
from transposable import Pattern, _core

QUICK = ["--quick", "--patterns", "4:8,1:4"]


class DenseStream:
    """The operations of a stream, done densely; ``spoil`` changes a result."""

    nbytes = 100

    def __init__(
        self,
        mask: torch.Tensor,
        dtype: torch.dtype,
        spoil: Callable[[str, torch.Tensor], torch.Tensor],
    ) -> None:
        self.mask, self.spoil = mask, spoil
        self.values = torch.empty(int(mask.sum()), dtype=dtype)

    def fill(self, weight: torch.Tensor) -> None:
        self.values.copy_(weight[self.mask])

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        dense = torch.zeros(self.mask.shape, dtype=self.values.dtype)
        dense[self.mask] = self.values
        return self.spoil("matmul", x @ dense.t())

    def weight_gradient(self, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        return self.spoil("weight_gradient", (dy.float().t() @ x.float()) * self.mask)


def stand_in(
    spoil: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, result: result,
) -> Build:
    return lambda mask, pattern, dtype: DenseStream(mask, dtype, spoil)


def in_process(build: Build) -> Callable[[Job], dict[str, Any]]:
    return lambda job: measure(job, build, lambda line: None)


def test_a_quick_run_measures_every_direction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    json_file, markdown, plot = (tmp_path / name for name in ("r.json", "r.md", "r.png"))
    outputs = ["--json", str(json_file), "--markdown", str(markdown), "--plot", str(plot)]
    command = [*QUICK, "--bf16", "--strict", "--details", *outputs]
    assert matmul.main(command, in_process(stand_in())) == 0
    assert torch.get_num_threads() == threads  # as it was

    results = json.loads(json_file.read_text())
    half = 2 if onednn.available(torch.bfloat16) else 1  # dense products of bfloat16
    assert results["gate"]["products"] == 3 * (3 + 2) + 3 * (half + 2)
    assert 0 < results["gate"]["worst"] <= TOLERANCE
    plain, bf16 = results["sections"]
    assert (plain["dtype"], bf16["dtype"]) == ("float32", "bfloat16")
    assert [case["direction"] for case in plain["cases"]] == list(DIRECTIONS)
    for case in plain["cases"]:
        assert len(case["dense"]) == 3
        assert case["best"] in case["dense"]
        for parts in case["patterns"].values():
            assert parts["time"]["rounds"] == case["rounds"] == 3
            ratios = parts["ratios"]
            for against in ("best", "torch"):
                for clock in ("wall", "cpu"):
                    found = ratios[against][clock]
                    assert 0 < found["low"] <= found["median"] <= found["high"]
    assert plain["cases"][0]["reorder"]["wall_median_s"] > 0
    assert [case["patterns"]["1:4T"]["density"] for case in bf16["cases"]] == [0.25] * 3
    assert "numpy: it has no torch.bfloat16" in bf16["skipped"]
    for cost in plain["costs"]:
        assert cost["index_build_s"] > 0
        assert cost["bytes_per_weight"] == 100 / (48 * 96)
    assert not any(row["judged"] for row in results["targets"])

    printed = capsys.readouterr().out
    assert f"gate passed: {21 + 3 * half} products" in printed
    assert "these figures mean nothing" in printed
    assert markdown.read_text().startswith(matmul_tables.BEGIN)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert platform.node() not in results["machine"].values()

    text = f"before\n{matmul_tables.BEGIN}\nold\n{matmul_tables.END}\nafter\n"
    markdown.write_text(text)
    again = ["--from-json", str(json_file), "--markdown", str(markdown)]
    assert matmul.main(again) == 0
    assert "old" not in markdown.read_text()
    assert markdown.read_text().startswith("before\n")
    markdown.write_text("no markers")
    assert matmul.main(again) == matmul.EXIT_MARKERS
    assert markdown.read_text() == "no markers"


def test_the_measured_process_runs_the_library(tmp_path: Path) -> None:
    json_file = tmp_path / "r.json"
    assert matmul.main([*QUICK, "--json", str(json_file)]) == 0
    results = json.loads(json_file.read_text())
    assert results["gate"]["products"] == 3 * (3 + 2)
    (section,) = results["sections"]
    assert section["isa_taken"] == _core.isa()
    for cost in section["costs"]:
        assert 0 < cost["bytes_per_weight"] < cost["bytes_per_weight_both"] < 16


def _one_entry(name: str, result: torch.Tensor) -> torch.Tensor:
    result[3, 5] += 1e-2
    return result


def _not_a_number(name: str, result: torch.Tensor) -> torch.Tensor:
    result[-1, -1] = torch.nan
    return result


def _last_row_missing(name: str, result: torch.Tensor) -> torch.Tensor:
    result[-1] = 0
    return result


def _cut(name: str, result: torch.Tensor) -> torch.Tensor:
    return result[:-1]


def _half_precision(name: str, result: torch.Tensor) -> torch.Tensor:
    return result.bfloat16().float()


def _gradient_of_the_pruned(name: str, result: torch.Tensor) -> torch.Tensor:
    return result + 1e-30 if name == "weight_gradient" else result


@pytest.mark.parametrize(
    "spoil",
    [_one_entry, _not_a_number, _last_row_missing, _cut, _half_precision, _gradient_of_the_pruned],
)
def test_the_gate_stops_a_wrong_product(
    spoil: Callable[[str, torch.Tensor], torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    json_file = tmp_path / "r.json"
    run = in_process(stand_in(spoil))
    assert matmul.main([*QUICK, "--json", str(json_file)], run) == matmul.EXIT_GATE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "so no speed is reported\ngate: 4:8T, " in printed.err
    assert not json_file.exists()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peers_compute_the_product_and_the_gate_reads_it(
    direction: Any, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(0)
    x, dy, weight = (
        torch.randn(*shape, generator=draw).to(dtype) for shape in ((9, 24), (9, 40), (40, 24))
    )
    report = MatmulGate()
    judge = Judge(direction, Operands(x, dy, weight), report)
    peers = list(dense_peers(direction, Operands(x, dy, weight)))
    assert len(peers) == (3 if dtype is torch.float32 else 1 + onednn.available(dtype))
    for peer in peers:
        judge.check(peer.name, lambda p=peer: p.plain(p.call()), None)  # type: ignore[misc]
    assert report.products == len(peers)
    mask = torch.rand(40, 24, generator=draw) < 0.5
    with pytest.raises(GateError, match=r"gate: dense: (entry|a pruned weight)"):
        judge.check("dense", peers[0].call, mask)


def _section(worst: float, median: float, **changes: Any) -> dict[str, Any]:
    def case(ratio: float, tokens: int) -> dict[str, Any]:
        ratios = {"best": {"wall": {"median": ratio}}, "torch": {"wall": {"median": 2 * ratio}}}
        return {
            "direction": "forward",
            "in": 384,
            "out": 1536,
            "tokens": tokens,
            "patterns": {"4:8T": {"ratios": ratios}},
        }

    return {
        "title": "a section",
        "dtype": "float32",
        "isa": None,
        "isa_taken": "avx512",
        "cases": [case(0.1, 64), case(worst, 256), case(median, 1024), case(9.0, 4096)],
        "costs": [],
        **changes,
    }


def test_targets_ask_for_the_worst_product_and_for_enough_tokens() -> None:
    for worst, median, met, median_met in (
        (1.6, 1.7, True, True),
        (1.59, 1.7, False, True),
        (1.4, 1.5, False, False),
    ):
        results = {"quick": False, "sections": [_section(worst, median)]}
        (row,) = matmul_targets.judge(results)
        assert (row["met"], row["median_met"], row["judged"]) == (met, median_met, True)
        assert (row["worst"], row["median"], row["limit"]) == (worst, median, 1.6)
        assert row["worst_at"] == "4:8T 384x1536, 256 tokens"
    # A path is held against F.linear, and only if it was the one that ran.
    avx2 = _section(0.7, 0.8, isa="avx2", isa_taken="avx2")
    (row,) = matmul_targets.judge({"quick": False, "sections": [avx2]})
    assert (row["target"], row["worst"], row["met"]) == ("forward / F.linear, 50 %", 1.4, True)
    other = _section(0.7, 0.8, isa="avx2", isa_taken="avx512")
    assert matmul_targets.judge({"quick": False, "sections": [other]}) == []
    assert matmul_targets.judge({"quick": False, "sections": [_section(2, 2, dtype="bf16")]}) == []


def test_bytes_are_a_target_too() -> None:
    cost = {"in": 64, "out": 64, "pattern": "2:4T", "dense_bytes_per_weight": 4}
    for size, met in ((2.4, True), (2.5, False)):
        section = _section(2, 2, costs=[{**cost, "bytes_per_weight": size}])
        row = matmul_targets.judge({"quick": False, "sections": [section]})[-1]
        assert (row["target"].startswith("bytes"), row["met"]) == (True, met)


def test_the_roof_is_the_fma_peak_of_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("a job", 2, [(16, 8)], [4], ["2:4T"], rounds=(1, 1))
    monkeypatch.delattr(_core, "fma_peak", raising=False)
    section = measure(job, stand_in(), lambda line: None)
    assert section["fma_peak_gflops"] is None
    best = max(matmul_tables.dense_gflops(case) for case in section["cases"])
    assert matmul_tables.peak(section) == (best, "best dense product of the run")
    monkeypatch.setattr(_core, "fma_peak", lambda seconds: 100.0, raising=False)
    section = measure(job, stand_in(), lambda line: None)
    assert matmul_tables.peak(section) == (200.0, "measured FMA peak")


def test_rounds_follow_the_budget() -> None:
    calls = {"a": lambda: None, "b": lambda: None}
    assert len(rounds(calls, (1, 3), 0.0)["a"].samples) == 1
    assert len(rounds(calls, (1, 3), 60.0)["b"].samples) == 3


def test_a_process_gets_its_threads_and_says_why_it_died(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = Job("a job", 2, [(8, 8)], [4], ["9:8T"], isa="avx2")
    assert Job.from_dict(json.loads(json.dumps(job.as_dict()))) == job
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    settings = matmul_worker.environment(job)
    assert "OPENBLAS_CORETYPE" not in settings
    assert settings["OPENBLAS_NUM_THREADS"] == settings["OMP_NUM_THREADS"] == "2"
    assert settings["TRANSPOSABLE_ISA"] == "avx2"
    with pytest.raises(matmul_worker.WorkerError, match="a job: the process ended with status 1"):
        matmul_worker.run(job)
    assert "n < m" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patterns", "8:4"], "--patterns: "),
        (["--shapes", "64"], "received '64'"),
        (["--shapes", "64x0"], "received '0'"),
        (["--tokens", "-1"], "received '-1'"),
        (["--threads", "1000"], "core(s) only"),
        (["--budget-seconds", "0"], "above 0"),
    ],
)
def test_options_are_checked(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        matmul.main(options)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_the_density_of_a_name() -> None:
    for name in ("2:4T", "1:4T", "8:16T"):
        assert matmul_targets.density(name) == Pattern.parse(name).density
