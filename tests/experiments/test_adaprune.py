"""One-shot pruning: the runner on tiny data, the language model, what is published."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch.nn import functional as F

from experiments import memory
from experiments.adaprune import conversion, overview, run, tables
from experiments.adaprune.tasks import tasks
from experiments.models import stories
from experiments.models.resnet import ResNet
from experiments.runs import RunStore
from experiments.tables import BEGIN, END, table_in


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A network, pictures and stories of the real shapes, with drawn values."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    folder = tmp_path / "data"
    for name in ("cifar10", "models", "tinystories"):
        (folder / name).mkdir(parents=True)
    for name, count in (("calib", 8), ("test", 40)):
        pixels = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = draw.integers(0, 10, count, dtype=np.uint8)
        np.savez(folder / "cifar10" / f"{name}.npz", images=pixels, labels=labels)
    save_file(ResNet(20).state_dict(), folder / "models" / "resnet20_jpeg.safetensors")
    save_file(stories.Stories().state_dict(), folder / "models" / "stories260K.safetensors")
    lengths = draw.integers(5, 300, 6)
    ids = draw.integers(1, 512, lengths.sum(), dtype=np.uint16)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    np.savez(folder / "tinystories" / "stories.npz", ids=ids, offsets=offsets)
    return folder


def task_of(data: Path, key: str) -> Any:
    return next(task for task in tasks(data) if task.key == key)


def small(task: Any) -> Any:
    """The same task with a ResNet of 8 layers and half the channels."""
    torch.manual_seed(0)
    net = ResNet(8, width=8).eval()
    return dataclasses.replace(task, load=lambda: copy.deepcopy(net))


def config_of(name: str) -> run.Config:
    return next(config for config in run.CONFIGS if config.name == name)


def test_rows_and_configurations_are_those_that_are_named(tmp_path: Path) -> None:
    keys = [task.key for task in tasks(tmp_path)]
    names = [config.name for config in run.CONFIGS]
    assert len(set(keys)) == len(keys) == 7
    assert len(set(names)) == len(names)
    assert set(overview.TARGETS) <= set(keys)
    assert {run.HEADLINE, overview.MAGNITUDE} <= set(names)
    for order, pair in overview.PAIRS.items():
        exact, published = (config_of(name) for name in pair)
        assert exact.mode == published.mode == order
        assert exact.batchnorm == published.batchnorm
        assert exact.method.scores == published.method.scores == "magnitude"  # type: ignore[attr-defined]


def test_a_convolutional_network(data: Path) -> None:
    whole = task_of(data, "resnet20_jpeg 4:8T")
    assert run.run_one(whole, config_of("magnitude"), threads=1)["layers"] == 18
    task = small(whole)
    found = run.run_one(task, config_of("AdaPrune, mask by magnitude"), threads=1)
    assert found["layers"] == 6
    assert found["samples"] == 8
    assert 0 < found["error"] < found["error_masked"] < 1
    assert 0.5 < found["magnitude"] < 1
    assert found["seconds"] > 0
    assert found["peak_mib"] is None or 0 < found["peak_mib"] < 2000
    by_magnitude = run.run_one(task, config_of("magnitude"), threads=1)
    assert by_magnitude["score_masked"] == found["score_masked"]
    assert by_magnitude["error"] == by_magnitude["error_masked"]


def test_batch_norm_is_touched_after_the_last_layer_only(data: Path) -> None:
    """So that the rows with and without it have the same weights."""
    task = small(task_of(data, "resnet20_jpeg 4:8T"))
    kept, matched = (
        run.run_one(task, config_of(name), threads=1)
        for name in ("AdaPrune, batch norm kept", "AdaPrune")
    )
    assert (kept["error"], kept["error_masked"]) == (matched["error"], matched["error_masked"])


def test_a_language_model_with_a_ragged_layer(data: Path) -> None:
    task = task_of(data, "stories260K 4:8T")
    calibration = task.calibration()
    assert len(calibration) == 3
    assert all(len(ids) == 1 and ids.shape[1] <= 256 for ids in calibration)
    found = run.run_one(task, config_of("AdaPrune"), threads=1)
    assert found["layers"] == 35
    assert found["error"] < found["error_masked"]


def test_the_halves_of_the_stories_share_none(data: Path) -> None:
    task = task_of(data, "stories260K 4:8T")
    calibrated = {tuple(ids[0].tolist()) for ids in task.calibration()}
    measured: list[tuple[int, ...]] = []

    class Uniform(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            measured.append(tuple(ids[0].tolist()))
            return torch.zeros(*ids.shape, 512)

    assert task.measure(Uniform()) == pytest.approx(np.log(512))
    assert len(measured) == 3
    assert calibrated.isdisjoint(measured)


def test_conversion_of_unstructured_sparsity(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "PATTERNS", ("2:4", "4:8T"))
    low, high = (
        conversion.convert(small(task_of(data, "resnet20_jpeg 4:8T")), share) for share in (50, 80)
    )
    for found in (low, high):
        assert [one["pattern"] for one in found["converted"]] == list(conversion.PATTERNS)
        assert all(0 < one["violated"] < 1 for one in found["converted"])
    for sparse, sparser in zip(low["converted"], high["converted"], strict=True):
        assert sparser["violated"] < sparse["violated"]


def test_a_run_is_published_and_not_done_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command line, with a process for each run."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "README.md").write_text(f"before\n{BEGIN}\n{END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(run, "__file__", str(folder / "run.py"))
    arguments = ["--data", str(data), "--work", str(tmp_path / "work"), "--threads", "1"]
    chosen = ["--task", "resnet20_jpeg", "--config", "magnitude"]
    first = CliRunner().invoke(run.main, [*arguments, *chosen])
    assert first.exit_code == 0, first.output
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    (task,) = document["tasks"]
    assert [one["config"] for one in task["runs"]] == ["magnitude"]
    shown = table_in((folder / "README.md").read_text(encoding="utf-8"))
    assert shown == tables.table(document, run.HEADLINE)
    assert "| magnitude |" in shown

    monkeypatch.setattr(run, "_in_child", lambda *_: pytest.fail("the run was finished"))
    again = CliRunner().invoke(run.main, [*arguments, *chosen])
    assert again.exit_code == 0
    assert again.output == first.output


def test_a_run_that_fails_is_named(data: Path) -> None:
    (data / "cifar10" / "calib.npz").unlink()
    with pytest.raises(RuntimeError, match="resnet20_jpeg 4:8T, magnitude: the process ended"):
        run._in_child(data, "resnet20_jpeg 4:8T", "magnitude", 1)


def test_missing_data_is_named(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(run.main, ["--data", str(tmp_path), "--work", str(tmp_path / "w")])
    assert outcome.exit_code == 1
    assert "models/stories260K.safetensors" in outcome.output
    assert "--data DIR" in outcome.output


def test_what_is_published_is_what_the_code_would_run() -> None:
    """The committed results, as far as there are any."""
    folder = Path(run.__file__).parent
    if not (folder / "result.json").is_file():
        pytest.skip("nothing is published yet")
    document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    shown = table_in((folder / "README.md").read_text(encoding="utf-8"))
    assert shown == tables.table(document, run.HEADLINE)
    for task in document["tasks"]:
        for one in task["runs"]:
            assert one["settings"] == run.settings_of(task["pattern"], config_of(one["config"]))
    for one in document["conversion"]:
        assert one["settings"] == conversion.settings_of("resnet20_jpeg")


def document(**changes: float) -> dict[str, Any]:
    def one(config: str, score: float, error: float, seconds: float) -> dict[str, Any]:
        return {
            "config": config,
            "score_masked": 67.72,
            "score": score,
            "error_masked": 0.08,
            "error": error,
            "seconds": seconds,
            "peak_mib": None,
        }

    exact, published = overview.PAIRS["sequential"]
    runs = [
        one("magnitude", 80.0, 0.08, 1),
        one(published, 85.0, 0.04, 100),
        one("AdaPrune", changes.get("score", 87.2), 0.02, 10),
        one(exact, 87.5, 0.025, 8),
    ]
    task = {"task": "resnet20_jpeg", "pattern": "4:8T", "score": "top-1, %", "digits": 2}
    return {"tasks": [{**task, "dense": 88.06, "runs": runs}], "conversion": []}


def test_the_overview_says_what_was_reached() -> None:
    def cells(text: str) -> list[str]:
        return [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]

    name = "resnet20_jpeg 4:8T: top-1, %"
    best = "AdaPrune, to be compared: 87.50"
    expected = [name, "88.06", "67.72", "**87.20**", "-0.86", "87.2", "yes", best]
    assert cells(overview.overview(document(), "AdaPrune")) == expected
    missed = cells(overview.overview(document(score=87.19), "AdaPrune"))
    assert missed[3:7] == ["**87.19**", "-0.87", "87.2", "no"]
    found = cells(overview.comparison(document()))
    assert found[:4] == [name, "sequential", "85.00", "87.50"]
    assert found[4:] == ["0.0400", "0.0250", "100.0", "8.0", "12.5"]


@pytest.mark.parametrize(
    ("key", "score", "reached"),
    [
        ("resnet20 2:4T", 79.0, True),
        ("resnet20 2:4T", 78.99, False),
        ("resnet32 2:4T", 80.0, True),
        ("resnet32 2:4T", 79.9, False),
        ("MiniLM 2:4T", 70.1, True),
        ("MiniLM 2:4T", 70.0, False),
        ("MiniLM 4:8T", 81.0, True),
        ("MiniLM 4:8T", 80.9, False),
    ],
)
def test_targets(key: str, score: float, reached: bool) -> None:
    assert overview.TARGETS[key].reached(score, 82.0, 70.0) == reached


def test_a_low_loss_is_the_best() -> None:
    runs = [{"config": "a", "score": 1.5}, {"config": "b", "score": 1.4}]
    assert overview.best_of({"score": "loss, nats", "runs": runs})["config"] == "b"
    assert overview.best_of({"score": "top-1, %", "runs": runs})["config"] == "a"


def test_the_peak_of_a_part() -> None:
    before = memory.start()
    if before is None:
        pytest.skip("no /proc/self/clear_refs on this system")
    torch.ones(1 << 24).sum()  # 64 MiB
    peak = memory.above(before)
    assert peak is not None
    assert 60 < peak / 2**20 < 120
    later = memory.start()
    torch.ones(1 << 20).sum()
    found = memory.above(later)
    assert found is not None
    assert found / 2**20 < 40


def plain_rotation(x: torch.Tensor) -> torch.Tensor:
    """As llama2.c turns pairs: one after another, [length, size]."""
    size = x.shape[1]
    out = x.clone()
    for position in range(len(x)):
        for i in range(0, size, 2):
            angle = torch.tensor(position * 10000.0 ** -(i / size))
            a, b = x[position, i], x[position, i + 1]
            out[position, i] = a * angle.cos() - b * angle.sin()
            out[position, i + 1] = a * angle.sin() + b * angle.cos()
    return out


def test_the_language_model_against_plain_loops() -> None:
    torch.manual_seed(0)
    net = stories.Stories().eval()
    ids = torch.randint(512, (1, 7))
    with torch.no_grad():
        x = net.tok_embeddings.weight[ids[0]]
        for layer in net.layers:
            y = _norm(x, layer.attention_norm.weight)
            q, k, v = (getattr(layer.attention, f"w{n}")(y) for n in "qkv")
            heads = []
            for head in range(8):
                columns = slice(8 * head, 8 * head + 8)
                shared = slice(8 * (head // 2), 8 * (head // 2) + 8)
                scores = plain_rotation(q[:, columns]) @ plain_rotation(k[:, shared]).T / 8**0.5
                causal = torch.ones(7, 7).tril().bool()
                scores = scores.masked_fill(~causal, -torch.inf)
                heads.append(scores.softmax(1) @ v[:, shared])
            x = x + layer.attention.wo(torch.cat(heads, 1))
            y, ff = _norm(x, layer.ffn_norm.weight), layer.feed_forward
            x = x + ff.w2(F.silu(ff.w1(y)) * ff.w3(y))
        expected = _norm(x, net.norm.weight) @ net.tok_embeddings.weight.T
        assert torch.allclose(net(ids)[0], expected, atol=1e-4, rtol=1e-4)


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight


def test_results_under_other_settings_are_refused(data: Path, tmp_path: Path) -> None:
    store, config = RunStore(tmp_path), config_of("AdaPrune")
    done = run.planned(task_of(data, "stories260K 4:8T"), config)
    store.finish(done, {})
    other = dataclasses.replace(config, mode="parallel")
    with pytest.raises(RuntimeError, match="was made with"):
        store.result(run.planned(task_of(data, "stories260K 4:8T"), other))
