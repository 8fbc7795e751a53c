"""The documents hold: their Python runs, their links lead somewhere, their figures are measured."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tables import BEGIN, END
from transposable.prune import METHODS, SCORES
from transposable.solvers import SOLVERS

ROOT = Path(__file__).parents[1]
CARDS = sorted((ROOT / "src" / "transposable" / "train" / "recipes").glob("*/README.md"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *CARDS]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"^```python torchrun\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def _python(document: Path) -> list[str]:
    return BLOCK.findall(document.read_text(encoding="utf-8"))


def _short(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if _python(d)], ids=_short)
def test_python_blocks(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in order and share their names; ">>>" blocks are compared with their output."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "document"}
    for number, block in enumerate(_python(document), start=1):
        where = f"{_short(document)}, block {number}"
        if ">>>" not in block:
            exec(compile(block, where, "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, where, str(document), 0)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        report: list[str] = []
        runner.run(test, out=report.append, clear_globs=False)
        names.update(test.globs)
        assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("document", ["docs/prune.md"])
def test_scripts_for_torchrun(document: str, tmp_path: Path) -> None:
    """Each of them runs in two processes."""
    scripts = SCRIPT.findall((ROOT / document).read_text(encoding="utf-8"))
    assert scripts
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    for number, script in enumerate(scripts):
        path = tmp_path / f"script{number}.py"
        path.write_text(script, encoding="utf-8")
        done = subprocess.run(
            [*command, path.name],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]


def test_readme_has_python() -> None:
    assert _python(ROOT / "README.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=_short)
def test_links_lead_to_files(document: Path) -> None:
    targets = LINK.findall(document.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing


def test_every_solver_is_described() -> None:
    text = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
    assert [name for name in SOLVERS if f"`{name}`" not in text] == []


def test_every_pruning_method_and_score_is_described() -> None:
    text = (ROOT / "docs" / "prune.md").read_text(encoding="utf-8")
    assert [name for name in (*METHODS, *SCORES) if f"`{name}`" not in text] == []


def test_the_benchmark_finds_its_place_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)


@pytest.mark.parametrize("document", ["README.md", "experiments/one_shot/README.md"])
def test_one_shot_tables_show_the_measured_figures(document: str) -> None:
    folder = ROOT / "experiments" / "one_shot"
    results = json.loads((folder / "result.json").read_text(encoding="utf-8"))["results"]
    text = (ROOT / document).read_text(encoding="utf-8")
    table = text.split("<!-- one-shot -->")[1].split("<!-- /one-shot -->")[0]
    rows = {}
    for line in table.strip().splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
        rows[name.split(" (")[0]] = cells
    assert rows == {
        name: [f"{row['score']:.2f}" for row in measured] for name, measured in results.items()
    }
