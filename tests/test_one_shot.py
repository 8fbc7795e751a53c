"""The one-shot experiment's parts, without its data."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.models.resnet import ResNet, load_resnet
from experiments.one_shot import run


def test_resnet_has_the_published_size() -> None:
    for depth, parameters in ((20, 269_722), (32, 464_154)):
        net = ResNet(depth)
        assert sum(p.numel() for p in net.parameters()) == parameters
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_shortcut_keeps_channels_in_the_middle() -> None:
    block = ResNet(8).layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    with torch.no_grad():
        y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].count_nonzero() == y[:, 24:].count_nonzero() == 0


def test_wrong_checkpoint_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"conv1.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(RuntimeError, match="missing"):
        load_resnet(tmp_path / "x.safetensors", 20)


def test_only_the_first_convolution_stays_dense() -> None:
    layers = run.conv_layers(ResNet(20))
    assert len(layers) == 18
    assert "conv1" not in layers


def test_spearman_agrees_with_the_definition() -> None:
    x = np.array([1.0, 2.0, 2.0, 4.0, 3.0])
    y = np.array([10.0, 30.0, 20.0, 50.0, 40.0])
    # Ranks 1, 2.5, 2.5, 5, 4 and 1, 3, 2, 5, 4.
    expected = np.corrcoef([1, 2.5, 2.5, 5, 4], [1, 3, 2, 5, 4])[0, 1]
    assert run.spearman(x, y) == pytest.approx(expected)
    assert run.spearman(x, np.exp(x)) == pytest.approx(1)
    assert run.spearman(x, -x) == pytest.approx(-1)


def test_evaluate_restores_and_verifies() -> None:
    torch.manual_seed(0)
    net = ResNet(8).eval()
    layers = run.conv_layers(net)
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    densities = []

    def score() -> float:
        total = sum(layer.weight.numel() for layer in layers.values())
        densities.append(sum(int(m.weight.count_nonzero()) for m in layers.values()) / total)
        return 0.0

    rows = run.evaluate(layers, "conv", score, lambda row: None)
    assert densities == [1, 0.5, 0.5, 0.5, 0.5, 0.5] == [row.density for row in rows]
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())
    kept = {row.pattern: row.kept for row in rows}
    assert 1 == kept["50%"] > kept["4:8"] > kept["2:4"] > kept["2:4T"]
    assert kept["4:8"] > kept["4:8T"] > kept["2:4T"]


def test_a_deviation_is_reported() -> None:
    def rows(scores: tuple[float, ...]) -> list[run.Row]:
        return [run.Row(p, s, None, 1.0, 0.0) for p, s in zip(run.PATTERNS, scores, strict=True)]

    results = {name: rows(scores) for name, scores in run.INDEPENDENT.items()}
    assert run.deviations(results) == []
    wrong = (88.06, 84.16, 77.40, 65.52, 67.72, 50.10)
    assert run.deviations({**results, "resnet20_jpeg": rows(wrong)}) == [
        "resnet20_jpeg 2:4T: 50.10, expected 49.98"
    ]


def test_missing_data_is_named(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(run.main, ["--data", str(tmp_path)])
    assert outcome.exit_code == 1
    assert "5 of 5 data files are not there" in outcome.output
    assert "--data DIR" in outcome.output
