"""transposable analyze: what it writes and prints, and everything that can go wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file

from transposable.analysis import retention

Run = Callable[..., Result]


def test_page_document_and_plots(run: Run, model: Path) -> None:
    page, figures, folder = (model.with_name(name) for name in ("r.html", "r.json", "plots"))
    result = run("analyze", model, "-o", page, "--json", figures, "--png", folder)
    assert result.exit_code == 0, result.stderr
    for line in ("model.safetensors: 2 layers, 1,024 weights", f"wrote: {page}", "proved optimal"):
        assert line in result.stdout
    assert "analyzing: 100 % (layers.1.up.weight)" in result.stderr
    assert page.read_text("utf-8").startswith("<!doctype html>")
    written = json.loads(figures.read_text("utf-8"))
    assert written["patterns"] == ["2:4", "4:8", "2:4T", "4:8T", "4:8S"]
    found = retention(model, written["patterns"])
    for pattern in written["patterns"]:
        assert written["totals"][pattern]["relative"] == found.total(pattern).relative
        row = next(line for line in result.stdout.splitlines() if line.split()[:1] == [pattern])
        assert row.split()[1] == f"{100 * (found.total(pattern).relative or 0):.2f}"
    names = sorted(os.listdir(folder))
    assert "retention.png" in names
    assert "mask-2-4-8T.png" in names
    assert len(names) == 5 + 2 * 5
    for name in names:
        with Image.open(folder / name) as image:
            image.verify()


def test_outputs_are_replaced_together(run: Run, model: Path) -> None:
    page, figures = model.with_name("r.html"), model.with_name("r.json")
    page.write_text("old")
    figures.write_text("old")
    folder = model.with_name("plots")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    arguments = ("-o", page, "--json", figures, "--png", folder, "-p", "2:4")
    nan = model.with_name("nan.bin")  # a pickle by its name: refused
    assert run("analyze", nan, *arguments).exit_code == 3
    assert run("analyze", model, *arguments, "--show", "nosuch").exit_code == 2
    assert page.read_text() == figures.read_text() == "old"
    assert os.listdir(folder) == ["mine.txt"]
    assert run("analyze", model, *arguments).exit_code == 0
    assert page.stat().st_size > 10_000
    assert json.loads(figures.read_text())["patterns"] == ["2:4"]
    assert (folder / "mine.txt").read_text() == "mine"
    assert not [name for name in os.listdir(model.parent) if name.endswith(".tmp")]


def test_a_sample_is_stated(run: Run, tmp_path: Path) -> None:
    path, page = tmp_path / "m.safetensors", tmp_path / "r.html"
    save_file({"a.weight": torch.randn(128, 128), "b.weight": torch.randn(16, 16)}, path)
    arguments = ("analyze", path, "-o", page, "-p", "2:4T", "--sample")
    stated = "4,352 of 16,640 weights"
    result = run(*arguments, 4096, "--seed", 3)
    assert stated in result.stdout
    assert "seed 3" in result.stdout
    assert stated in page.read_text("utf-8")
    assert "of sampled tiles" in page.read_text("utf-8")
    result = run(*arguments, "all", "--scores", "l2")
    assert "Every weight of these layers was measured." in result.stdout
    assert "squared magnitude" in page.read_text("utf-8")


def test_nan_is_named_and_the_rest_is_written(run: Run, tmp_path: Path) -> None:
    path, page, figures = (tmp_path / name for name in ("m.safetensors", "r.html", "r.json"))
    weight = torch.randn(16, 16)
    weight[1, 2] = float("nan")
    save_file({"bad.weight": weight, "good.weight": torch.randn(16, 16)}, path)
    result = run("analyze", path, "-o", page, "--json", figures)
    assert result.exit_code == 3
    assert "error: analyze" in result.stderr
    assert "'bad.weight' is left out: 1 of 256 weights is NaN" in result.stderr
    assert "left out: bad.weight" in result.stdout
    assert "left out: NaN" in page.read_text("utf-8")
    assert [one["name"] for one in json.loads(figures.read_text())["layers"]] == ["good.weight"]
    assert run("analyze", path, "-o", page, "--exclude", "bad").exit_code == 0


def test_nothing_to_analyse(run: Run, tmp_path: Path) -> None:
    path, page = tmp_path / "m.safetensors", tmp_path / "r.html"
    save_file({"lm_head.weight": torch.randn(8, 8)}, path)
    result = run("analyze", path, "-o", page)
    assert result.exit_code == 0
    assert "no layer to analyse" in result.stdout
    assert "no layer to analyse" in page.read_text("utf-8")
    # What was asked for by name must be there.
    assert run("analyze", path, "-o", page, "--include", "nosuch").exit_code == 2
    included = run("analyze", path, "-o", page, "--include", "lm_head")
    assert "1 layer, 64 weights" in included.stdout


def test_the_model_is_never_overwritten(run: Run, model: Path) -> None:
    before = model.read_bytes()
    for option in (["-o", model], ["-o", model.with_name("r.html"), "--json", model]):
        result = run("analyze", model, *option)
        assert result.exit_code == 4
        assert "belongs to the model" in result.stderr
    link = model.with_name("link.html")
    link.symlink_to(model)
    assert run("analyze", model, "-o", link).exit_code == 4
    same = model.with_name("same")
    assert run("analyze", model, "-o", same, "--json", same).exit_code == 4
    assert model.read_bytes() == before
    assert sorted(os.listdir(model.parent)) == ["link.html", model.name]


@pytest.mark.parametrize("option", ["-o", "--json", "--png"])
def test_unwritable_outputs(run: Run, model: Path, option: str) -> None:
    arguments = {"-o": model.with_name("r.html"), option: model.parent / "no" / "such" / "place"}
    result = run("analyze", model, *(part for pair in arguments.items() for part in pair))
    assert result.exit_code == 4
    assert "place" in result.stderr
    assert os.listdir(model.parent) == [model.name]


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["-o", "r.html", "-p", "2:4,,4:8"], "comma"),
        (["-o", "r.html", "-p", ""], "comma"),
        (["-o", "r.html", "-p", "2:4,hello"], "accepted forms"),
        (["-o", "r.html", "-p", "4:4T"], "1 <= n < m"),
        (["-o", "r.html", "--sample", "0"], "--sample"),
        (["-o", "r.html", "--sample", "many"], "--sample"),
        (["-o", "r.html", "--seed", "-1"], "--seed"),
        (["-o", "r.html", "--scores", "l3"], "--scores"),
        (["-o", "r.html", "--layout", "flat"], "the layouts are"),
        ([], "--out"),
    ],
)
def test_usage_errors(
    run: Run, model: Path, args: list[str], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    result = run("analyze", model, *args)
    assert result.exit_code == 2
    assert match in result.stderr
    assert result.stdout == ""
    assert os.listdir(model.parent) == [model.name]


def test_a_missing_package(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = run("analyze", model, "-o", model.with_name("r.html"))
    assert result.exit_code == 3
    assert "pip install 'transposable[analyze]'" in result.stderr
    assert os.listdir(model.parent) == [model.name]
