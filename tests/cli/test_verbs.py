"""What the verbs print, and the exit codes and messages of everything that can go wrong."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

import transposable
from transposable.cli.show import collapse, fold
from transposable.solvers import SOLVERS

Run = Callable[..., Result]


def test_prune(run: Run, model: Path) -> None:
    out = model.with_name("out.safetensors")
    result = run("prune", model, "--pattern", "4:8T", "--out", out)
    assert result.exit_code == 0, result.stderr
    text = result.stdout
    assert "pruned: 2 of 4 tensors, 1,024 of 1,696 weights" in text
    assert "embedding (1 tensor)\n      embed_tokens.weight" in text
    assert "bias (1 tensor)\n      layers.0.up.bias" in text
    assert "solver exact (chosen by auto)" in text
    assert "512 kept (50.00 %)" in text
    assert "axis in 0 groups violated, axis out 0 groups violated" in text
    assert f"wrote: {out}" in text
    row = next(line for line in text.splitlines() if line.startswith("layers.1.up.weight"))
    assert row.split()[1] == "32x16"
    assert 0.85 < float(row.split()[2]) < 1
    assert "pruning: 50 % (layers.0.up.weight)" in result.stderr
    assert transposable.verify(load_file(out)["layers.0.up.weight"], "4:8T").ok
    assert run("verify", out).exit_code == 0


def test_prune_json(run: Run, model: Path) -> None:
    out = model.with_name("out.safetensors")
    masks = model.with_name("masks.safetensors")
    result = run("prune", model, "-p", "2:4T", "-o", out, "--masks", masks, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["version"] == transposable.__version__
    assert document["pattern"] == "2:4T"
    assert document["solver"] == "exact"
    assert document["totals"]["weights"] == 2 * document["totals"]["kept"] == 1024
    assert document["totals"]["violations"] == 0
    assert [t["name"] for t in document["tensors"]] == ["layers.0.up.weight", "layers.1.up.weight"]
    for tensor in document["tensors"]:
        assert tensor["shape"] == [32, 16]
        assert tensor["gap"] <= 1e-6
        assert tensor["status"] == "OPTIMAL"
        assert tensor["violations"] == {"in": 0, "out": 0}
        assert tensor["retention"] == pytest.approx(tensor["objective"] / tensor["unstructured"])
    assert {t["name"]: t["reason"] for t in document["dense"]} == {
        "embed_tokens.weight": "embedding",
        "layers.0.up.bias": "bias",
    }
    assert run("verify", out, "--masks", masks).exit_code == 0


def test_dry_run(run: Run, model: Path) -> None:
    result = run("prune", model, "-p", "2:4T", "--dry-run")
    assert result.exit_code == 0
    assert "dry run: nothing written" in result.stdout
    assert os.listdir(model.parent) == [model.name]


def test_json_without_numbers_for_infinity(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.full((8, 8), float("inf"))}, path)
    result = run("prune", path, "-p", "2:4", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
    assert document["tensors"][0]["objective"] is None


def test_verify(run: Run, model: Path) -> None:
    result = run("verify", model, "--pattern", "2:4T")
    assert result.exit_code == 1
    assert "VIOLATED in 2 of 2 tensors" in result.stdout
    assert (
        "layers.0.up.weight: axis in: 128 of 128 groups violate 2:4T, most kept 4" in result.stdout
    )
    assert "group at [0, 4]: keeps 4" in result.stdout
    assert "and 123 more" in result.stdout
    result = run("verify", model, "--pattern", "2:4T", "--json", "--include", "re:layers.0.up.w")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert document["tensors"][0]["axes"][0]["places"][0] == {"index": [0, 0], "kept": 4}
    run("prune", model, "-p", "2:4", "-o", model)
    result = run("verify", model)
    assert result.exit_code == 0
    assert "~ not promised by the pattern" in result.stdout
    assert run("verify", model, "--pattern", "2:4T").exit_code == 1


def test_verify_finds_one_changed_weight(run: Run, model: Path) -> None:
    run("prune", model, "-p", "2:4T", "-o", model)
    data = bytearray(model.read_bytes())
    weight = load_file(model)["layers.0.up.weight"]
    row, col = (weight == 0).nonzero()[7].tolist()
    with transposable_file(model) as (start, entries):
        entry = next(e for e in entries if e.name == "layers.0.up.weight")
        position = start + entry.begin + 4 * (row * 16 + col)
    data[position : position + 4] = torch.tensor([1.0]).numpy().tobytes()
    model.write_bytes(data)
    result = run("verify", model)
    assert result.exit_code == 1
    assert f"group at [{row}, {col // 4 * 4}]: keeps 3" in result.stdout
    assert f"group at [{row // 4 * 4}, {col}]: keeps 3" in result.stdout


class transposable_file:
    """The start of a file's data and its entries."""

    def __init__(self, path: Path) -> None:
        from transposable.export import TensorFile

        self.file = TensorFile(path)

    def __enter__(self) -> tuple[int, tuple[object, ...]]:
        return self.file.header.data_start, self.file.header.entries

    def __exit__(self, *_: object) -> None:
        self.file.close()


def test_inspect(run: Run, model: Path) -> None:
    run("prune", model, "-p", "4:8T", "-o", model, "-i", "layers.0.up")
    result = run("inspect", model)
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    assert rows["embed_tokens.weight"] == ["40x16", "F32", "1.0000", "leave:", "embedding"]
    assert rows["layers.0.up.weight"] == ["32x16", "F32", "0.5000", "4:8T", "prune", "(linear)"]
    assert rows["layers.1.up.weight"] == ["32x16", "BF16", "1.0000", "prune", "(linear)"]
    document = json.loads(run("inspect", model, "--json").stdout)
    assert document["metadata"][model.name]["transposable.pattern"] == "4:8T"
    assert [t["density"] for t in document["tensors"] if t["name"] == "layers.0.up.weight"] == [0.5]


def test_inspect_where_nothing_would_be_pruned(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(
        {"lm_head.weight": torch.zeros(4, 4), "f8": torch.zeros(4).to(torch.float8_e5m2)}, path
    )
    result = run("inspect", path)
    assert result.exit_code == 0
    assert "leave: head or pooler" in result.stdout


def test_solvers(run: Run) -> None:
    result = run("solvers")
    assert result.exit_code == 0
    for name in SOLVERS:
        assert any(line.split()[:1] == [name] for line in result.stdout.splitlines())
    document = json.loads(run("solvers", "--json").stdout)
    assert [solver["name"] for solver in document["solvers"]] == list(SOLVERS)


def test_help_and_version(run: Run) -> None:
    assert run("--version").stdout == f"transposable {transposable.__version__}\n"
    for args in (["--help"], ["prune", "--help"], ["verify", "-h"], ["inspect", "-h"]):
        result = run(*args)
        assert result.exit_code == 0
        for line in ("    1  verification failed", "  130  interrupted"):
            assert line in result.stdout


def bad_files(directory: Path) -> dict[str, Path]:
    good = {"w": torch.randn(8, 8)}
    paths = {name: directory / f"{name}.safetensors" for name in ("cut", "nan", "zip", "text")}
    save_file(good, paths["cut"])
    paths["cut"].write_bytes(paths["cut"].read_bytes()[:-5])
    save_file({"w": torch.full((8, 8), float("nan"))}, paths["nan"])
    paths["zip"].write_bytes(b"PK\x03\x04 and more")
    paths["text"].write_text("hello, world; this is no model")
    paths["pickle"] = directory / "pytorch_model.bin"
    paths["pickle"].write_bytes(pickle.dumps({"w": 1}))
    paths["missing"] = directory / "missing.safetensors"
    paths["shard"] = directory / "sharded"
    paths["shard"].mkdir()
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (paths["shard"] / "model.safetensors.index.json").write_text(json.dumps(index))
    paths["empty"] = directory / "empty"
    paths["empty"].mkdir()
    return paths


@pytest.mark.parametrize("verb", ["prune", "verify", "inspect"])
@pytest.mark.parametrize(
    "bad", ["cut", "nan", "zip", "text", "pickle", "missing", "shard", "empty"]
)
def test_bad_input(run: Run, tmp_path: Path, verb: str, bad: str) -> None:
    path = bad_files(tmp_path)[bad]
    before = sorted(os.listdir(tmp_path))
    args: list[object] = [verb, path]
    if verb == "prune":
        args += ["-p", "2:4T", "-o", tmp_path / "out", "--json"]
    if verb == "verify":
        args += ["-p", "2:4T"]
    result = run(*args)
    if bad == "nan" and verb != "prune":
        assert result.exit_code == (1 if verb == "verify" else 0)
        return
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, "one line"
    assert result.stderr.startswith("error: ")
    assert path.name in result.stderr
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["-p", "4:4T", "-o", "x"], "1 <= n < m"),
        (["-p", "0:4T", "-o", "x"], "1 <= n < m"),
        (["-p", "2:128T", "-o", "x"], "at most 64"),
        (["-p", "hello", "-o", "x"], "accepted forms"),
        (["-p", "2:4T"], "--out"),
        (["-o", "x"], "--pattern"),
        (["-p", "2:4T", "-o", "x", "--include", "nosuch"], "matches none"),
        (["-p", "2:4T", "-o", "x", "--exclude", "nosuch"], "matches none"),
        (["-p", "2:4T", "-o", "x", "--exclude", "*"], "none is left"),
        (["-p", "2:4T", "-o", "x", "--solver", "magic"], "choose from auto"),
        (["-p", "2:4T", "-o", "x", "--solver", "row-wise"], "use auto"),
        (["-p", "2:4T", "-o", "x", "--threads", "0"], "--threads"),
        (["-p", "2:4T", "-o", "x", "--layout", "flat"], "the layouts are"),
        (["-p", "2:4T", "--dry-run", "--masks", "x"], "--masks"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_usage_errors(run: Run, model: Path, args: list[str], match: str) -> None:
    result = run("prune", model, *args)
    assert result.exit_code == 2
    assert match in result.stderr
    assert result.stdout == ""
    assert os.listdir(model.parent) == [model.name]


def test_unwritable_outputs(run: Run, model: Path) -> None:
    for out in (model.parent / "no" / "such" / "x", model.parent, "/dev/full"):
        for option in ("--out", "--masks"):
            args = ["--out", model] if option == "--masks" else []
            result = run("prune", model, "-p", "2:4T", *args, option, out, "--json")
            assert result.exit_code == 4, result.output
            assert result.stdout == ""
            assert str(out) in result.stderr
    assert os.listdir(model.parent) == [model.name]
    assert load_file(model)["layers.0.up.weight"].count_nonzero() == 512


def test_debug_shows_the_traceback(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    assert "Traceback" not in run("inspect", path).stderr
    result = run("inspect", path, "--debug")
    assert "Traceback" in result.stderr
    assert result.exit_code == 3


def test_an_internal_error(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transposable.export.open_source", lambda _: 1 / 0)
    result = run("inspect", model)
    assert result.exit_code == 70
    assert "internal error: ZeroDivisionError" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_solver_that_fails(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transposable.solvers import Exact, Outcome

    def wrong(self: Exact, problem: object, *, certify: bool) -> Outcome:
        return Outcome(torch.ones(problem.matrices.shape, dtype=torch.bool))  # type: ignore[attr-defined]

    monkeypatch.setattr(Exact, "run", wrong)
    result = run("prune", model, "-p", "2:4T", "-o", model)
    assert result.exit_code == 5
    assert "layers.0.up.weight" in result.stderr
    assert load_file(model)["layers.0.up.weight"].count_nonzero() == 512


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_the_terminal(
    run: Run, tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    name = "encoder.layer.{}.attention.output.dense.weight"
    save_file({name.format(i): torch.randn(384, 64) for i in range(2)}, path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    result = run("prune", path, "-p", "2:4T", "--dry-run")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("tensor pruned"))
    end = lines.index("", start)
    assert all(len(line.rstrip()) <= width for line in lines[start:end])
    names = "".join(line.split()[0] for line in lines[start + 2 : end])
    assert names == name.format(0) + name.format(1), "folded, never cut"
    if width >= 80:
        assert lines[start + 2].split()[:2] == [name.format(0), "384x64"]
    colours = re.findall(r"\x1b\[([0-9;]*)m", result.stdout)
    assert set(colours) <= {"0", "1"}, "bold at most under NO_COLOR"


@pytest.mark.parametrize("terminal", [False, True])
def test_names_cannot_control_the_terminal(
    run: Run, tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    path = tmp_path / "m.safetensors"
    name = "evil\x1b]0;title\x07\x1b[2J\nline\u202e.weight"
    bad = torch.full((8, 8), float("nan"))
    save_file({name: torch.randn(16, 16), "x\x1b[2J.bias": torch.zeros(4)}, path)
    out, page = tmp_path / "out.safetensors", tmp_path / "r.html"
    results = [
        run("inspect", path),
        run("prune", path, "-p", "2:4T", "-o", out),
        run("verify", path, "-p", "2:4T"),  # lists the violations of a dense weight
        run("analyze", path, "-p", "2:4T", "-o", page),
    ]
    save_file({name: bad, "good.weight": torch.randn(16, 16)}, path)
    results += [run("prune", path, "-p", "2:4T", "-o", out), run("analyze", path, "-o", page)]
    for result in results:
        for text in (result.stdout, result.stderr):
            assert not set(re.sub(r"\x1b\[[0-9;?]*[mhlKA]", "", text)) & set("\x1b\x07\u202e")
            assert "\nline" not in text
        assert "evil\\x1b]0;title\\x07" in result.stdout + result.stderr


def test_collapse() -> None:
    assert collapse(["a.0.w", "a.1.w", "a.3.w", "b"]) == ["a.{0-1,3}.w", "b"]
    assert collapse(["conv1.w", "conv2.w"]) == ["conv1.w", "conv2.w"]
    experts = [f"l.{i}.e.{j}.w" for i in range(3) for j in range(2)]
    assert collapse(experts) == ["l.{0-2}.e.{0-1}.w"]
    assert collapse([]) == []
    assert collapse(["l.0.w", "l.1.w", "l.0.b"]) == ["l.{0-1}.w", "l.0.b"]


def test_fold() -> None:
    assert fold("abc.def.gh", 8) == ["abc.def.", "gh"]
    assert fold("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert fold("abc", 3) == ["abc"]
