"""The benchmark of whole models runs, its gates fail when they must, and its sums are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import block, block_inference, block_tables, block_training, onednn
from benchmarks.block import Candidate
from benchmarks.block_inference import Encoder
from benchmarks.harness import Sample, Series
from transposable.errors import DependencyError
from transposable.nn import SparseLinear, densify
from transposable.nn.backends import DENSE_MASKED, Backend, DenseMasked
from transposable.nn.layer import SparseLayer

QUICK = ["--quick", "--rounds", "2", "--training-patterns", "4:8", "--inference-patterns", "2:8"]
STAND_IN = Candidate(lambda: DENSE_MASKED, densify)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pre-trained encoder, and a small one in its place."""
    transformers = pytest.importorskip("transformers")

    def absent() -> Any:
        raise DependencyError("the model package is not installed")

    def small(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
        )
        net: nn.Module = transformers.BertModel(config).eval()
        return net

    monkeypatch.setattr(block_inference, "load_encoder", absent)
    monkeypatch.setattr(block_inference, "_random_bert", small)


@pytest.mark.usefixtures("tiny")
def test_a_quick_run_measures_both_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    json_file, markdown = tmp_path / "r.json", tmp_path / "r.md"
    outputs = ["--json", str(json_file), "--markdown", str(markdown)]
    assert block.main([*QUICK, "--strict", *outputs], STAND_IN) == 0
    assert torch.get_num_threads() == threads  # as it was

    results = json.loads(json_file.read_text())
    (training,) = results["training"]
    # The loss, the input, and of every layer weight and bias, by every recipe.
    assert training["gate"]["compared"] == len(block_training.RECIPES) * (2 + 2 * 6)
    assert set(block_training.RECIPES) < set(training["rows"])
    for name, (_, refreshed) in block_training.RECIPES.items():
        row = training["rows"][name]
        assert row["ratio"]["wall"]["median"] > 0
        assert ("refresh_adds_s" in row) == refreshed
        if refreshed:  # the index has to be built anew
            assert row["least_flip_rate"] > 0
    (inference,) = results["inference"]
    (row,) = inference["rows"].values()
    assert row["largest_difference"] <= block_inference.TOLERANCE
    assert {"dense", "masked dense"} <= set(row["ratios"])
    assert "random weights" in inference["model"]
    assert "skipped: all-MiniLM-L6-v2" in results["skipped"][0]
    assert len(results["targets"]) == len(block_training.RECIPES) + 1
    assert not any(target["judged"] for target in results["targets"])

    printed = capsys.readouterr().out
    assert "these figures mean nothing" in printed
    text = markdown.read_text()
    assert text.startswith(block_tables.BEGIN)
    assert "static mask" in text
    markdown.write_text("no markers")
    again = ["--from-json", str(json_file), "--markdown", str(markdown)]
    assert block.main(again) == block.EXIT_MARKERS


@pytest.mark.usefixtures("tiny")
def test_the_library_itself(tmp_path: Path) -> None:
    json_file = tmp_path / "r.json"
    assert block.main([*QUICK, "--parts", "training,inference", "--json", str(json_file)]) == 0
    results = json.loads(json_file.read_text())
    assert 0 < results["training"][0]["gate"]["worst"] <= block_training.TOLERANCE


class _Wrong(DenseMasked):
    """Leaves the bias out."""

    def run(self, layer: SparseLayer, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, layer.effective_weight())


class _Refusing(DenseMasked):
    name = "refusing"

    def refuses(self, layer: SparseLayer) -> str | None:
        return "no reason"


@pytest.mark.parametrize(
    ("backend", "message"),
    [(_Wrong, "gate: no gradient of|gate: 4:8T, "), (_Refusing, "the back end refuses layers")],
)
def test_a_wrong_step_is_not_timed(
    backend: Callable[[], Backend], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = Candidate(backend, densify)
    assert block.main([*QUICK, "--parts", "training"], candidate) == block.EXIT_GATE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert any(part in printed.err for part in message.split("|"))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (nn.Linear, "layer 'encoder.layer.0.attention.self.query' differs from the masked dense"),
        (nn.LayerNorm, "an embedding differs from the masked dense model's by"),
    ],
)
def test_a_wrong_model_is_not_timed(
    kind: type[nn.Linear | nn.LayerNorm], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoils(net: nn.Module) -> None:
        densify(net)
        with torch.no_grad():
            next(m for m in net.modules() if isinstance(m, kind)).weight[0] = 0.3

    candidate = Candidate(lambda: DENSE_MASKED, spoils)
    assert block.main([*QUICK, "--parts", "inference"], candidate) == block.EXIT_GATE
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")
def test_layers_through_onednn_are_the_dense_ones() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 8, bias=False))
    twin = onednn.through_onednn(net)
    x = torch.randn(3, 5, 24)
    found = []
    for model in (net, twin):
        mine = x.clone().requires_grad_()
        model(mine).square().sum().backward()
        found.append([mine.grad, *(parameter.grad for parameter in model.parameters())])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
    with torch.inference_mode():
        torch.testing.assert_close(twin(x), net(x))


def test_a_period_is_one_pair_with_a_refresh_and_the_rest_without() -> None:
    steps = Series([Sample(1.0, 2.0), Sample(2.0, 3.0)])
    pairs = Series([Sample(6.0, 8.0), Sample(4.0, 6.0)])
    mixed = block_training.amortised(steps, pairs)
    assert mixed.of("wall") == [(38 * 1.0 + 6.0) / 40, 2.0]
    assert mixed.of("cpu") == [(38 * 2.0 + 8.0) / 40, 3.0]


def test_targets() -> None:
    def training(value: float) -> dict[str, Any]:
        row = {"ratio": {"wall": {"median": value}}}
        return {"pattern": "4:8T", "threads": 1, "rows": dict.fromkeys(block_training.RECIPES, row)}

    def inference(pattern: str, value: float) -> dict[str, Any]:
        rows = {"a batch": {"ratios": {"dense": {"wall": {"median": value}}}}}
        return {"pattern": pattern, "threads": 1, "rows": rows}

    results = {
        "quick": False,
        "training": [training(1.3), training(1.29)],
        "inference": [inference("4:8T", 1.3), inference("2:8T", 1.7), inference("1:8T", 1.0)],
    }
    met = [row["met"] for row in block.judge(results)]
    assert met == [True] * 3 + [False] * 3 + [True, False]


def test_masks_of_a_refreshed_layer_move() -> None:
    """A recipe that zeroes what is pruned would refresh to the same mask, and rebuild nothing."""
    layer = SparseLinear(16, 16, pattern="2:4T")
    before = layer.weight.detach().clone()
    trainer = block_training.Trainer(
        nn.Sequential(nn.Linear(16, 16)), torch.ones(2, 16), None, None
    )
    trainer.net = nn.Sequential(layer)
    trainer.under(block_training.KeptGradient())
    assert trainer.controller is not None
    trainer.controller.step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "training,taste"], "received taste"),
        (["--training-patterns", "8:4"], "--training-patterns: "),
        (["--rounds", "0"], "at least 1"),
        (["--threads", "0"], "--threads: received 0"),
    ],
)
def test_options_are_checked(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        block.main(options)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_a_batch_of_sentences_comes_with_the_encoder() -> None:
    encoder = block_inference.load(quick=True, seed=0)
    assert isinstance(encoder, Encoder)
    assert (encoder.note is None) == (len(encoder.batches) == 2)
