"""The benchmark of masks on a GPU, rehearsed on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_masks
from benchmarks.gate import GateError

SMALL = ["--quick", "--size", "32", "--rounds", "1", "--patterns", "2:4T,8:16T"]


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_masks.main([]) == gpu_masks.EXIT_NO_GPU == 4
    assert "no CUDA device" in capsys.readouterr().err


def test_rehearsal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    assert gpu_masks.main([*SMALL, "--json", str(path)], device="cpu") == 0
    results = json.loads(path.read_text())
    assert {"torch", "triton", "cpu"} <= set(results["machine"])
    times = results["patterns"]["2:4T"]["times"]
    assert {gpu_masks.OURS, gpu_masks.PROVED, gpu_masks.DYKSTRA, gpu_masks.CPU} <= set(times)
    assert gpu_masks.ENUMERATED not in results["patterns"]["8:16T"]["times"]
    short = results["patterns"]["2:4T"]["short of the optimum"]
    assert abs(short[gpu_masks.ENUMERATED]) < 1e-6
    assert 0 <= short[gpu_masks.DYKSTRA] < 0.05
    assert {row["met"] for row in results["targets"]} == {None}
    shown = capsys.readouterr().out
    assert "a rehearsal on the CPU" in shown
    assert "skipped: no GPU" in shown
    assert "not judged" in shown


def test_a_wrong_mask_stops_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(out: torch.Tensor, *rest: object) -> torch.Tensor:
        out.zero_()
        return torch.zeros(())

    monkeypatch.setattr(gpu_masks, "fill_mask", broken)
    assert gpu_masks.main(SMALL, device="cpu") == gpu_masks.EXIT_GATE
    assert "no time is reported" in capsys.readouterr().err


def test_targets_are_judged_by_the_proof() -> None:
    def times(seconds: float) -> dict[str, object]:
        return {"times": {gpu_masks.PROVED: {"wall_median_s": seconds}}}

    results = {
        "patterns": {"4:8T": times(0.009), "8:16T": times(0.011)},
        "refresh": {"share of a step": {"2:4T": {"median": 0.009}, "4:8T": {"median": 0.02}}},
    }
    met = [row["met"] for row in gpu_masks.targets(results, judged=True)]
    assert met == [True, False, True, False]


def test_the_gate_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_masks, "certify", lambda *given: None)
    with pytest.raises(GateError, match="2:4T"):
        gpu_masks.gate(torch.device("cpu"), ["2:4T"])
