"""The one-shot experiment: its language model, a run on a small network, its tables and figure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.adaprune import run, tables
from experiments.adaprune.figure import draw
from experiments.adaprune.tasks import Task
from experiments.models.stories import Stories, rotated
from experiments.runs import Run, RunStore
from transposable.prune import METHODS


def test_the_language_model_looks_back_only() -> None:
    torch.manual_seed(0)
    net = Stories().eval()
    assert 255_000 < sum(p.numel() for p in net.parameters()) < 265_000
    ids = torch.randint(512, (1, 9))
    other = ids.clone()
    other[0, 6:] = 0
    with torch.no_grad():
        a, b = net(ids), net(other)
    assert torch.allclose(a[:, :6], b[:, :6], atol=1e-5)
    assert not torch.allclose(a[:, 6:], b[:, 6:], atol=1e-3)


def test_rotation_depends_on_the_distance_only() -> None:
    q, k = torch.randn(2, 16).double()
    rates = 10000.0 ** -(torch.arange(8) / 8).double()

    def product(i: int, j: int) -> float:
        return float(rotated(q, i * rates) @ rotated(k, j * rates))

    assert product(3, 1) == pytest.approx(product(13, 11))
    assert product(3, 1) != pytest.approx(product(3, 2))


def _task() -> Task:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
    state = net.state_dict()
    x = torch.randn(64, 4, 7, 7)

    def load() -> nn.Module:
        fresh = nn.Sequential(
            nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)
        )
        fresh.load_state_dict(state)
        return fresh.eval()

    def measure(other: nn.Module) -> float:
        with torch.no_grad():
            return float((other(x) - load()(x)).square().mean())

    return Task(
        name="small",
        pattern="2:4T",
        score="error",
        digits=4,
        exclude=(),
        include=None,
        load=load,
        calibration=lambda: list(x.split(16)),
        measure=measure,
        needed=(),
    )


def test_runs_tables_and_figure(tmp_path: Path) -> None:
    task, store = _task(), RunStore(tmp_path)
    run.dense_run(task, store)
    for name in ("magnitude", run.HEADLINE):
        config = next(c for c in run.CONFIGS if c.name == name)
        result = run.run_one(task, config, 1)
        assert result["layers"] == 2
        store.finish(Run(f"{task.key}: {name}", 0, {}), result)
    document = tables.document_of(store, [task], [c.name for c in run.CONFIGS])
    (shown,) = document["tasks"]
    magnitude, adaprune = shown["runs"]
    assert adaprune["score"] < magnitude["score"]
    # By magnitude nothing is updated but batch norm, which is not part of the mask alone.
    assert magnitude["error"] == magnitude["error_masked"]
    text = tables.table(document, run.HEADLINE)
    assert "Dense: 0.0000." in text
    assert f"| **AdaPrune** | {adaprune['score_masked']:.4f} | {adaprune['score']:.4f} |" in text
    converted = {"pattern": "4:8T", "violated": 0.25, "masked": 60.0, "adaprune": 80.0}
    document["conversion"] = [{"sparsity": 60, "start": 85.0, "converted": [converted]}]
    assert "| 60 % | 85.00 | 4:8T | 25.0 | 60.00 | 80.00 |" in tables.table(document, "")
    draw(document, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_all_methods_are_in_it() -> None:
    assert {config.method.name for config in run.CONFIGS} == set(METHODS)
