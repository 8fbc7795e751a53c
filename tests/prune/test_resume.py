"""A killed run goes on where it stopped, and ends with the very same model."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prune import killed
from transposable import CheckpointError, OutputError
from transposable.prune import AdaPrune, PruneReport, prune_model
from transposable.prune.methods.mask_only import Wanda

HERE = Path(__file__).parent


def clean(report: PruneReport) -> list[Any]:
    """What does not depend on the clock."""
    return [replace(layer, seconds=(0.0, 0.0)) for layer in report.layers]


def must_equal(found: PruneReport, model: nn.Module, mode: str = "sequential") -> None:
    wanted = killed.model()
    reference = killed.run(wanted, None, mode, 0)
    assert clean(found) == clean(reference)
    for name, mask in reference.masks.items():
        assert torch.equal(found.masks[name], mask), name
    for name, value in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


KILLED = [("sequential", 3), ("sequential", 7), ("parallel", 2), ("parallel", 10)]
"""In the middle of layers with one input, of tied ones, of all; with the last one done."""


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each of them left what it had."""
    folder = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
    words = [str(word) for case in KILLED for word in case]
    done = subprocess.run(
        [sys.executable, "-m", "prune.killed", str(folder), *words],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    ends = [f"{mode}-{after} {-signal.SIGKILL}" for mode, after in KILLED]
    assert done.stdout.splitlines() == ends, done.stderr
    return folder


@pytest.mark.parametrize(("mode", "after"), KILLED)
def test_a_killed_process(mode: str, after: int, killed_runs: Path) -> None:
    folder = killed_runs / f"{mode}-{after}"
    assert not folder.with_suffix(".pt").exists()
    files = sorted(folder.glob("[!.]*.safetensors"))
    assert 0 < len(files) <= after
    before = {path: path.read_bytes() for path in files}
    model = killed.model()
    named: list[str] = []
    report = prune_model(
        model,
        "2:4T",
        calibration=killed.data(),
        mode=mode,
        resume=folder,
        progress=lambda share, name: named.append(name),
    )
    must_equal(report, model, mode)
    assert {path: path.read_bytes() for path in files} == before
    assert len(named) == len(report.layers)
    resumed = f"{len(files)} of 10 layers were pruned by an earlier run and resumed"
    assert resumed in report.notes


class StopError(Exception):
    pass


def interrupted(model: nn.Module, folder: Path, after: int, error: BaseException) -> None:
    left = [after]

    def stop(share: float, name: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise error

    prune_model(model, "2:4T", calibration=killed.data(), resume=folder, progress=stop)


@pytest.mark.parametrize("error", [StopError(), KeyboardInterrupt()])
@pytest.mark.parametrize("after", range(1, 11))
def test_an_exception(after: int, error: BaseException, tmp_path: Path) -> None:
    model = killed.model()
    before = weights_of(model)
    with pytest.raises(type(error)):
        interrupted(model, tmp_path, after, error)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
    report = prune_model(model, "2:4T", calibration=killed.data(), resume=tmp_path)
    must_equal(report, model)


def test_a_finished_run_is_read_again(tmp_path: Path) -> None:
    class Never(AdaPrune):
        def prune(self, problem: Any) -> Any:
            raise AssertionError(problem.name)

    Never.__qualname__ = AdaPrune.__qualname__
    for method in (AdaPrune(), Never()):
        model = killed.model()
        report = prune_model(model, "2:4T", method, killed.data(), resume=tmp_path)
        must_equal(report, model)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("weights", {"model": killed.model(1)}),
        ("calibration", {"calibration": killed.data(2)}),
        ("calibration", {"samples": 30}),
        ("pattern", {"pattern": "2:4"}),
        ("pattern", {"exclude": "0"}),
        ("mode", {"mode": "parallel"}),
        ("method", {"method": AdaPrune(ridge=0.5)}),
        ("method", {"method": Wanda()}),
        ("method", {"scores": "wanda"}),
        ("keep_zeros", {"keep_zeros": False}),
        ("refit_bias", {"refit_bias": False}),
        ("solver", {"solver": "greedy"}),
    ],
)
def test_another_run(what: str, change: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": killed.model(), "pattern": "2:4T"}
    options |= {"calibration": killed.data(), "resume": tmp_path}
    with pytest.raises(StopError):
        interrupted(killed.model(), tmp_path, 2, StopError())
    other = options | change
    before = weights_of(other["model"])
    with pytest.raises(CheckpointError, match=f"differs in {what}") as caught:
        prune_model(**other)
    assert "or a new directory" in str(caught.value)
    for name, value in before.items():
        assert torch.equal(other["model"].state_dict()[name], value), name
    must_equal(prune_model(**options), options["model"])


def test_scores_that_are_functions_are_told_apart_by_name(tmp_path: Path) -> None:
    def mine(problem: Any) -> torch.Tensor:
        return problem.weight.abs()

    def other(problem: Any) -> torch.Tensor:
        return problem.weight.abs()

    options: dict[str, Any] = {"calibration": killed.data(), "resume": tmp_path}
    prune_model(killed.model(), "2:4T", scores=mine, **options)
    prune_model(killed.model(), "2:4T", scores=mine, **options)
    with pytest.raises(CheckpointError, match="differs in method"):
        prune_model(killed.model(), "2:4T", scores=other, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2)).to(dtype)
        model[0].weight.data = model[0].weight.data.to(memory_format=torch.channels_last)
        data = [torch.randn(4, 4, 5, 5, dtype=torch.float64).to(dtype)]
        report = prune_model(model, "2:4T", calibration=data, resume=tmp_path)
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        results.append((model, report))
    (first, _), (second, report) = results
    assert any("resumed" in note for note in report.notes)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def renamed(path: Path) -> None:
    other = sorted(path.parent.glob("*.safetensors"))[-1]
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("harm", [damaged, renamed])
def test_a_file_that_is_wrong(harm: Callable[[Path], None], tmp_path: Path) -> None:
    model = killed.model()
    with pytest.raises(StopError):
        interrupted(model, tmp_path, 3, StopError())
    path = min(tmp_path.glob("*.safetensors"))
    harm(path)
    before = weights_of(model)
    with pytest.raises(CheckpointError, match="delete the file to have the layer pruned again"):
        prune_model(model, "2:4T", calibration=killed.data(), resume=tmp_path)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
    path.unlink()
    must_equal(prune_model(model, "2:4T", calibration=killed.data(), resume=tmp_path), model)


def test_directories_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds 'notes\.txt' but no run\.json"):
        prune_model(killed.model(), "2:4T", calibration=killed.data(), resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(OutputError, match="is no directory to write to"):
        prune_model(
            killed.model(), "2:4T", calibration=killed.data(), resume=tmp_path / "notes.txt"
        )
    for text in ("{", "[]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"run.json cannot be read|of another run"):
            prune_model(killed.model(), "2:4T", calibration=killed.data(), resume=tmp_path)


def test_what_a_killed_run_was_writing_is_no_file(tmp_path: Path) -> None:
    (tmp_path / ".run.json.0123.tmp").write_text("{")
    model = killed.model()
    must_equal(prune_model(model, "2:4T", calibration=killed.data(), resume=tmp_path), model)


def test_no_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = killed.model()
    before = weights_of(model)
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="free some space"):
        prune_model(model, "2:4T", calibration=killed.data(), resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_model_that_is_pruned_already(tmp_path: Path) -> None:
    """inplace_progress leaves what is done: then the model is not the dense one any more."""
    model = killed.model()

    def stop(share: float, name: str) -> None:
        raise StopError

    options: dict[str, Any] = {"calibration": killed.data(), "resume": tmp_path}
    with pytest.raises(StopError):
        prune_model(model, "2:4T", inplace_progress=True, progress=stop, **options)
    with pytest.raises(CheckpointError, match="the model as it was before pruning"):
        prune_model(copy.deepcopy(model), "2:4T", **options)
