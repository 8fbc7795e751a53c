"""The benchmark of a large layer runs, and its gate stops what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import prune_layer
from transposable.prune.methods.adaprune import fit


def test_a_quick_run_passes_its_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    assert prune_layer.main(["--quick", "--tokens", "3300", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["error"]["least squares"] < found["error"]["mask alone"]
    assert found["gate"]["missed_share"] < prune_layer.MISSED
    assert found["target"]["met"] is None  # of another shape
    assert "these figures mean nothing" in capsys.readouterr().out


def test_the_gate_stops_an_output_that_was_not_solved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lazy(problem, mask, ridge):  # type: ignore[no-untyped-def]
        pruned = fit(problem, mask, ridge)
        half = torch.lerp(problem.weight * mask, pruned.weight, 0.9)
        return replace(pruned, weight=half)

    monkeypatch.setattr(prune_layer, "fit", lazy)
    assert prune_layer.main(["--quick", "--tokens", "3300"]) == prune_layer.EXIT_GATE
    assert "misses" in capsys.readouterr().err
