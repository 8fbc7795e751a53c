"""The page and the JSON document of a study, read as text."""

from __future__ import annotations

import json
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from analysis import models
from transposable.analysis import document, draw_all, findings, mask_picture, render, study
from transposable.analysis.page import MOST_ROWS
from transposable.analysis.plots.style import style_of
from transposable.errors import DependencyError, SelectionError
from transposable.pattern import Pattern

PATTERNS = ["2:4", "4:8T", "2:4T"]
VOID = {"meta", "link", "img", "br", "wbr"}


class Page(HTMLParser):
    """Tags, text and attributes; fails when an element is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "".join(self.words)


def test_an_ordinary_page(tmp_path: Path) -> None:
    found = study(models.ordinary(tmp_path / "m.safetensors"), [*PATTERNS, "50%", "4:8S", "4:8"])
    text = render(found)
    page = Page(text)
    assert "N:M analysis of m.safetensors" in page.text
    for words in ("In short", "Masks, checked along both axes", "How many masks", "Feasibility"):
        assert words in page.text
    for layer in found.retention.layers:
        assert layer.name.removesuffix(".weight") in page.text
        for one in layer.kept:
            assert one.relative is not None
            assert f"{100 * one.relative:.2f}" in page.text
    assert "116,963,796,250" in page.text
    assert "1.76 \N{MULTIPLICATION SIGN} 1013" in page.text
    assert "Left out: 1 tensors" in page.text
    assert len(page.named("img")) == 5 + 3 * 6
    assert all(image["alt"] for image in page.named("img"))
    # Nothing is fetched: every source is data, there are no links, and the page's policy says so.
    assert all(str(image["src"]).startswith("data:image/") for image in page.named("img"))
    assert not re.search(r"(?:src|href|url\()\s*=?\s*[\"'(]?\s*(?:https?:|//)", text)
    policies = [m["content"] for m in page.named("meta") if m.get("http-equiv")]
    assert policies
    assert "default-src 'none'" in str(policies[0])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_names_are_escaped(tmp_path: Path) -> None:
    found = study(models.odd(tmp_path / "<i>m.safetensors"), PATTERNS, show=["*"])
    text = render(found)
    page = Page(text)
    assert len(page.named("script")) == 1
    assert not page.named("i")
    assert all(set(attributes) == {"src", "alt"} for attributes in page.named("img"))
    for name in models.ODD_NAMES:
        assert (name or "(no name)") in page.text
    assert "49" not in page.text.split("{{ 7")[0][-20:], "names are no templates"
    assert json.loads(json.dumps(document(found), allow_nan=False))["title"].startswith("<i>")


@pytest.mark.parametrize("show", [(), ("encoder.layer.1.dense",), ("re:layer.[02]", "*.1.*")])
def test_layers_that_are_pictured(tmp_path: Path, show: tuple[str, ...]) -> None:
    path = models.ordinary(tmp_path / "m.safetensors", layers=5)
    found = study(path, PATTERNS, show=show)
    places = {(): "024", ("encoder.layer.1.dense",): "1"}.get(show, "012")
    names = list(dict.fromkeys(picture.layer for picture in found.pictures))
    assert names == [f"encoder.layer.{i}.dense.weight" for i in places]
    for picture in found.pictures:
        assert picture.kept.shape == (16, 16)
        groups = picture.kept.reshape(16, -1, picture.pattern.m).sum(2)
        assert (groups == picture.pattern.n).all()
        if picture.pattern.transposable:
            assert (
                picture.kept.T.reshape(16, -1, picture.pattern.m).sum(2) == picture.pattern.n
            ).all()
        assert mask_picture(picture).startswith(b"\x89PNG")
    with pytest.raises(SelectionError, match="nosuch"):
        study(path, PATTERNS, show=["nosuch"])


def test_a_model_without_layers(tmp_path: Path) -> None:
    found = study(models.without_layers(tmp_path / "m.safetensors"), PATTERNS)
    page = Page(render(found))
    assert "There is no layer to analyse" in page.text
    assert "head or pooler" in page.text
    assert "How many masks" in page.text, "which needs no model"
    assert document(found)["totals"]["2:4"]["relative"] is None


def test_a_model_of_one_layer() -> None:
    torch.manual_seed(0)
    found = study(nn.Linear(8, 8), ["4:8T"])
    page = Page(render(found))
    assert "1 layer, 64 weights, 1 pattern;" in page.text
    assert len(found.pictures) == 1, "first, middle and last are the same"
    assert any("proved optimal" in line for line in findings(found))


def test_nan(tmp_path: Path) -> None:
    found = study(models.with_nan(tmp_path / "m.safetensors"), PATTERNS)
    page = Page(render(found))
    assert "1 layer is left out: NaN" in page.text
    size = "16\N{MULTIPLICATION SIGN}16"
    assert f"<b>bad</b>.weight ({size}): 1 of 256 weights is NaN, the first at index" in page.text
    written = document(found)
    assert [one["name"] for one in written["failed"]] == ["<b>bad</b>.weight"]
    assert [one["name"] for one in written["layers"]] == ["good.weight"]


def test_infinite_weights() -> None:
    model = nn.Linear(8, 8)
    model.weight.data.fill_(float("inf"))
    found = study(model, PATTERNS)
    assert "unknown" in Page(render(found)).text
    json.dumps(document(found), allow_nan=False)


def test_ten_thousand_layers(tmp_path: Path) -> None:
    """The page stays small and quick; the document has every layer."""
    small = study(models.ordinary(tmp_path / "m.safetensors"), PATTERNS)
    found = models.many_layers(small, 10_000)
    started = time.perf_counter()
    text = render(found)
    assert time.perf_counter() - started < 30
    assert len(text) < 1_500_000
    page = Page(text)
    assert f"The {MOST_ROWS} layers that keep the least, of 10,000" in page.text
    rows = [
        tag for tag, attributes in page.tags if tag == "th" and attributes.get("scope") == "row"
    ]
    assert MOST_ROWS < len(rows) < MOST_ROWS + 50
    assert len(document(found)["layers"]) == 10_000


def test_numbers_of_masks_in_the_document() -> None:
    def numbers(*patterns: str) -> dict[str, Any]:
        written = document(study(nn.ReLU(), patterns))["diversity"]
        json.dumps(written, allow_nan=False)
        return {p: written["exact"][p]["count"] for p in patterns}

    assert numbers("4:8T", "2:4T") == {"4:8T": "116963796250", "2:4T": "65610000"}
    assert numbers("16:32T") == {"16:32T": None}, "an estimate has no digits"
    assert numbers("2:4T", "3:25", "3:49")["2:4T"] is None, "and millions of digits help nobody"


def test_patterns_look_different() -> None:
    """Without colour the first six differ by their lines; with it all do."""
    patterns = [Pattern(n, m, "transposable") for m in (2, 4, 8, 16, 32) for n in range(1, m)][:36]
    styles = [style_of(patterns, pattern) for pattern in patterns]
    assert len({str(style["ls"]) for style in styles[:6]}) == 6
    assert len({(style["color"], str(style["ls"])) for style in styles}) == 36


def test_the_same_study_draws_the_same_bytes() -> None:
    found = study(nn.Linear(16, 16), ["2:4T"])
    first, second = draw_all(found), draw_all(found)
    assert [(d.name, d.svg, d.png) for d in first] == [(d.name, d.svg, d.png) for d in second]
    assert render(found) == render(found)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib.figure"])
def test_a_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = study(nn.Linear(8, 8), ["2:4"])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=r"transposable\[analyze\]"):
        render(found)


def test_many_patterns_and_densities() -> None:
    """More patterns than colours, odd tile sides, a density without a percentage."""
    patterns = ["1:4T", "2:4T", "3:4T", "2:6T", "3:6", "1:3", "2:3S", "4:8T", "25%", "1:8"]
    found = study(nn.Linear(48, 24), patterns)
    assert found.block == 24
    drawn = {drawing.name for drawing in draw_all(found)}
    assert drawn == {"retention", "layers", "tradeoff", "diversity", "feasibility"}
    Page(render(found))
