"""The page in a real browser: it renders, says nothing to the console, sorts, prints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis import models
from transposable.analysis import render, study

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="no chromium, chromium-browser or google-chrome here; apt-get install chromium",
)

PATTERNS = ["2:4", "4:8", "2:4T", "4:8T", "4:8S"]

FRAME = """<!doctype html><body style="margin:0">
<iframe id="page" src="report.html"
  style="border:0;display:block;width:{width}px;height:900px"></iframe>
<pre id="found"></pre>
<script>
page.onload = () => {{
  const doc = page.contentDocument, view = page.contentWindow, root = doc.documentElement;
  const column = (n) => [...doc.querySelectorAll("table.sortable tbody tr")].map(
    (row) => row.cells[n].textContent);
  const sorted = [];
  const heads = [...doc.querySelectorAll("table.sortable th button")];
  for (const press of [1, 2, 3]) {{
    if (!heads.length) break;
    heads[1].click();
    sorted.push([heads[1].closest("th").getAttribute("aria-sort"), column(1)]);
  }}
  const wide = [...doc.body.querySelectorAll("*")].filter(
    (one) => !one.closest(".scroll") && one.getBoundingClientRect().right > root.clientWidth + 1);
  found.textContent = JSON.stringify({{
    scroll: root.scrollWidth, client: root.clientWidth, height: root.scrollHeight,
    images: [...doc.images].map((image) => image.complete && image.naturalWidth),
    wide: wide.map((one) => one.outerHTML.slice(0, 80)),
    sorted: sorted, names: column(0), title: doc.title,
    focus: heads.map((one) => one.tabIndex),
    font: parseFloat(view.getComputedStyle(doc.body).fontSize),
  }});
}};
</script>"""


def chromium(directory: Path, *arguments: str) -> tuple[str, str]:
    """Standard output and what the console said."""
    done = subprocess.run(
        [
            str(BROWSER),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--allow-file-access-from-files", "--no-first-run"),
            # No name can be looked up: nothing comes from a network.
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={directory / 'profile'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, "\n".join(re.findall(r".*CONSOLE.*", done.stderr))


def looked_at(directory: Path, width: int) -> dict[str, object]:
    frame = directory / f"frame{width}.html"
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    out, console = chromium(directory, "--dump-dom", "--window-size=1400,1000", frame.as_uri())
    assert console == ""
    text = re.search(r'<pre id="found">(.+?)</pre>', out, re.DOTALL)
    assert text, out[-500:]
    result = json.loads(text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert isinstance(result, dict)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    found = study(models.ordinary(directory / "m.safetensors", layers=12), PATTERNS)
    (directory / "report.html").write_text(render(found), encoding="utf-8")
    return directory


@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_and_sorts(folder: Path, width: int) -> None:
    seen = looked_at(folder, width)
    assert seen["client"] == width
    assert seen["scroll"] == width, "the page itself does not scroll sideways"
    assert seen["wide"] == []
    assert len(seen["images"]) == 5 + 3 * 5  # type: ignore[arg-type]
    assert all(seen["images"]), "every picture was decoded"  # type: ignore[arg-type]
    assert seen["font"] >= 16  # type: ignore[operator]
    assert set(seen["focus"]) == {0}, "headings are reached by the keyboard"  # type: ignore[call-overload]
    (up, rising), (down, falling), (none, original) = seen["sorted"]  # type: ignore[misc]
    assert (up, down, none) == ("ascending", "descending", None)
    assert [float(x) for x in rising] == sorted(float(x) for x in original)
    assert falling == rising[::-1]
    assert seen["names"] == [f"encoder.layer.{i}.dense" for i in range(12)]


@pytest.mark.parametrize("width", [1280, 500])
def test_a_screenshot_shows_it(folder: Path, width: int) -> None:
    """Dark ink on white paper from edge to edge, and the patterns' colours."""
    shot = folder / f"shot{width}.png"
    arguments = (f"--window-size={width},3000", f"--screenshot={shot}")
    _, console = chromium(folder, *arguments, (folder / "report.html").as_uri())
    assert console == ""
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (3000, width, 3)
    light = (pixels > 240).all(2)
    assert 0.6 < light.mean() < 0.98
    assert (pixels < 90).all(2).any()
    for colour in ("0072B2", "D55E00", "009E73", "1F4E79"):
        rgb = [int(colour[i : i + 2], 16) for i in (0, 2, 4)]
        assert (abs(pixels - rgb).max(2) <= 2).sum() > 100, colour


def test_it_prints(folder: Path) -> None:
    file = folder / "report.pdf"
    chromium(folder, f"--print-to-pdf={file}", (folder / "report.html").as_uri())
    content = file.read_bytes()
    assert content.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 2 <= pages <= 8


def test_odd_names_stay_text(tmp_path: Path) -> None:
    found = study(models.odd(tmp_path / "m.safetensors"), ["2:4", "4:8T"])
    (tmp_path / "report.html").write_text(render(found), encoding="utf-8")
    seen = looked_at(tmp_path, 390)
    assert seen["title"] == "N:M analysis of m.safetensors"
    assert seen["scroll"] == 390
    assert seen["wide"] == []
    names = [" ".join(name.split()) for name in seen["names"]]  # type: ignore[attr-defined]
    expected = [" ".join((name or "(no name)").split()) for name in models.ODD_NAMES]
    assert sorted(names) == sorted(expected)


@pytest.mark.parametrize("kind", ["none", "nan", "many"])
def test_other_models(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.safetensors"
    if kind == "many":
        found = models.many_layers(study(models.ordinary(path), ["2:4", "4:8T"]), 10_000)
    else:
        make = models.without_layers if kind == "none" else models.with_nan
        found = study(make(path), ["2:4", "4:8T"])
    (tmp_path / "report.html").write_text(render(found), encoding="utf-8")
    seen = looked_at(tmp_path, 390)
    assert seen["scroll"] == 390
    assert seen["wide"] == []
    assert all(seen["images"])  # type: ignore[arg-type]
