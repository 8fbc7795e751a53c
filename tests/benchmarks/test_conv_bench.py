"""The benchmark of convolutions: it runs, its gate bites, its table says what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import conv
from benchmarks.conv_cases import OURS, Case, Direction


def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "conv.json", tmp_path / "page.md"
    page.write_text(f"before\n{conv.BEGIN}\n{conv.END}\nafter\n")
    given = ["--quick", "--patterns", "2:4", "--json", str(results), "--markdown", str(page)]
    assert conv.main(given) == 0
    found = json.loads(results.read_text())
    assert len(found["layers"]) == 2
    for record in found["layers"]:
        for direction, judged in record["directions"].items():
            assert len(judged["series"]) == 4 + (direction == "forward")
            assert judged["best"]["low"] <= judged["best"]["median"] <= judged["best"]["high"]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "these figures mean nothing" in text
    assert "gate passed" in capsys.readouterr().out
    page.write_text("no markers")
    assert conv.main(["--from-json", str(results), "--markdown", str(page)]) == conv.EXIT_MARKERS


@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
def test_a_wrong_product_stops_it(direction: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Case):
        def products(self, wanted: Direction) -> dict[str, Callable[[], Any]]:
            found = super().products(wanted)
            if wanted == direction:
                right = found[OURS[1]]
                found[OURS[1]] = lambda: right() * 1.0001
            return found

    assert conv.main(["--quick", "--patterns", "2:4"], Broken) == conv.EXIT_GATE
    captured = capsys.readouterr()
    assert direction in captured.err
    assert "OURS" not in captured.out


def test_a_gradient_of_a_pruned_weight_stops_it() -> None:
    class Leaky(Case):
        def products(self, wanted: Direction) -> dict[str, Callable[[], Any]]:
            found = super().products(wanted)
            if wanted == "weight_gradient":
                right = found[OURS[0]]
                found[OURS[0]] = lambda: right() + 1e-20
            return found

    assert conv.main(["--quick", "--patterns", "2:4"], Leaky) == conv.EXIT_GATE


@pytest.mark.parametrize("given", [["--patterns", "5:4"], ["--threads", "0"], ["--rounds", "-1"]])
def test_bad_options(given: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        conv.main(given)
    assert caught.value.code == 2
