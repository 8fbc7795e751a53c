"""The GPU benchmarks on the CPU: they run, and what is wrong is caught before it is timed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_block, gpu_harness, gpu_matmul
from transposable.sparse.semi.formats import Reference

ROOT = Path(__file__).parents[2]
HERE = ["--quick", "--device", "cpu", "--rounds", "1"]


@pytest.fixture(autouse=True)
def measured() -> Iterator[None]:
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


def results(main: Any, path: Path, *more: str) -> tuple[int, dict[str, Any]]:
    code = main([*HERE, "--json", str(path), *more])
    return code, json.loads(path.read_text())


def test_products(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = results(gpu_matmul.main, tmp_path / "m.json")
    assert code == 0
    assert found["gate"] == "passed"
    assert [one["bias"] for one in found["shapes"]] == [True, False]
    assert {"torch", "triton", "cusparselt", "cuda"} <= found["machine"].keys()
    first = found["shapes"][0]
    assert set(first["parts"]) == {"forward", "input gradient", "weight gradient", "packing"}
    assert first["memory"]["packed_bytes"] > 0
    assert len(first["gate"]["errors"]) == 16
    assert "sparse, always" in capsys.readouterr().out


def test_blocks(tmp_path: Path) -> None:
    code, found = results(gpu_block.main, tmp_path / "b.json")
    assert code == 0
    assert [one["block"] for one in found["blocks"]] == list(gpu_block.BLOCKS)
    assert all(one["gate"]["compared"] > 10 for one in found["blocks"])


@pytest.mark.parametrize("main", [gpu_matmul.main, gpu_block.main])
@pytest.mark.parametrize("wrong", [1.05, float("nan")])
def test_a_wrong_product_is_not_timed(
    main: Any, wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Reference.matmul
    monkeypatch.setattr(Reference, "matmul", lambda *args: right(*args) * wrong)
    monkeypatch.setattr(gpu_matmul, "why_unsound", lambda *args: None)
    monkeypatch.setattr(gpu_matmul, "reproduces", lambda *args, **more: True)
    monkeypatch.setattr(gpu_harness, "interleave", lambda *args: pytest.fail("it was timed"))
    code, found = results(main, tmp_path / "w.json")
    assert code == gpu_harness.EXIT_GATE
    assert "relative error" in found["gate"]
    assert "shapes" not in found


def test_a_packing_that_loses_a_weight_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Reference.pack

    def forgetful(*args: Any, **more: Any) -> Any:
        operand = right(*args, **more)
        operand.values[0, 0] = 0
        return operand

    monkeypatch.setattr(Reference, "pack", forgetful)
    code, found = results(gpu_matmul.main, tmp_path / "w.json")
    assert code == gpu_harness.EXIT_GATE
    assert "bit for bit" in found["gate"]


def test_no_time_left(tmp_path: Path) -> None:
    _, found = results(gpu_matmul.main, tmp_path / "n.json", "--seconds", "0")
    assert len(found["left_out"]) == 2
    assert found["shapes"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_matmul.main([]) == gpu_harness.EXIT_NO_GPU
    assert "no CUDA" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["gpu_all.sh", "gpu_training.sh"])
def test_scripts_are_sound(script: str) -> None:
    path = ROOT / "benchmarks" / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    done = subprocess.run(["bash", str(path), "--help"], capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout
