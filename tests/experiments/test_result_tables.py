"""From runs to what is committed, and the committed files against each other."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from experiments import figures, tables
from experiments.command import Experiment, command
from experiments.methods import Method
from experiments.runs import Run, RunStore

NAMES = ("static_cifar10", "dynamic_cifar10", "finetune_minilm", "pretrain_gpt")
ROOT = Path(__file__).parents[2] / "experiments"
TEXT = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def committed(name: str) -> dict[str, Any]:
    return json.loads((ROOT / name / "result.json").read_text(encoding="utf-8"))


def experiment(name: str) -> Experiment:
    return importlib.import_module(f"experiments.{name}.run").EXPERIMENT


def test_readme_shows_the_committed_results(name: str) -> None:
    text = (ROOT / name / "README.md").read_text(encoding="utf-8")
    assert tables.table_in(text) == experiment(name).table(committed(name))


def test_committed_runs_are_those_of_the_code(name: str) -> None:
    known = {method.name: method for method in experiment(name).methods}
    runs = committed(name)["runs"]
    keys = [(run["config"], run["seed"]) for run in runs]
    assert len(set(keys)) == len(keys)
    for run in runs:
        planned = experiment(name).run(known[run["config"]], run["seed"], held_out=False)
        assert run["settings"] == json.loads(json.dumps(planned.settings))
        assert run["settings"]["measured"] == "test"


def test_the_figure_can_be_drawn(name: str, tmp_path: Path) -> None:
    experiment(name).draw(committed(name), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_differences_are_taken_seed_by_seed() -> None:
    dense = [{"seed": 0, "x": 1.0}, {"seed": 1, "x": 3.0}]
    assert tables.paired([{"seed": 1, "x": 4.0}], dense, "x") == 1.0
    assert tables.paired([{"seed": 2, "x": 4.0}], dense, "x") is None
    assert tables.spread(dense, "x", ".1f") == "2.0 (1.0 to 3.0)"
    assert tables.spread(dense[:1], "x", ".1f") == "1.0"


def test_only_the_table_of_a_readme_changes() -> None:
    table = tables.markdown(("a", "b"), [("c", "1")])
    assert table == "| a | b |\n| --- | ---: |\n| c | 1 |"
    replaced = tables.with_table(TEXT, table)
    assert replaced == TEXT.replace("old", table)
    assert tables.table_in(replaced) == table
    with pytest.raises(ValueError, match="once each"):
        tables.with_table("no markers", table)


@pytest.fixture
def counted(tmp_path: Path) -> tuple[Experiment, list[Run]]:
    """An experiment that trains nothing and remembers what it was asked for."""
    (tmp_path / "README.md").write_text(TEXT, encoding="utf-8")
    done: list[Run] = []

    def train(method: Method, run: Run, data: bool, store: RunStore) -> dict[str, Any]:
        done.append(run)
        return store.finish(run, {"score": 1.0 + run.seed, "curve": [2.0, 1.0], "data": data})

    return Experiment(
        folder=tmp_path,
        methods=(Method("dense"), Method("4:8T", "4:8T")),
        seeds=(0, 1),
        settings={"epochs": 2},
        needed=("file",),
        load=lambda data, held_out: held_out,
        train=train,
        score="score",
        draw=figures.drawing(figures.Panels("score", "s", "curve", "c", targets=((-0.5, "t"),))),
        table=lambda document: tables.markdown(
            ("config", "score"),
            [(c, tables.spread(r, "score", ".1f")) for c, r in tables.by_config(document).items()],
        ),
    ), done


def test_command_trains_what_is_missing_and_publishes(
    counted: tuple[Experiment, list[Run]], tmp_path: Path
) -> None:
    experiment, done = counted
    options = ["--data", str(tmp_path), "--work", str(tmp_path / "work")]
    run = CliRunner()

    failed = run.invoke(command(experiment), options)
    assert failed.exit_code == 1
    assert "--data DIR" in failed.output
    empty = run.invoke(command(experiment), [*options, "--publish-only"])
    assert empty.exit_code == 1
    assert "no finished run" in empty.output

    (tmp_path / "file").touch()
    one = run.invoke(command(experiment), [*options, "--config", "4:8T", "--seed", "1"])
    assert one.exit_code == 0, one.output
    assert [(r.config, r.seed) for r in done] == [("4:8T", 1)]
    assert not (tmp_path / "result.json").exists()

    rest = run.invoke(command(experiment), options)
    assert rest.exit_code == 0, rest.output
    assert [(r.config, r.seed) for r in done[1:]] == [("dense", 0), ("4:8T", 0), ("dense", 1)]
    document = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert [r["data"] for r in document["runs"]] == [False] * 4
    assert "| 4:8T | 1.5 (1.0 to 2.0) |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "figure.png").stat().st_size > 10_000

    again = run.invoke(command(experiment), options)
    assert again.exit_code == 0, again.output
    assert len(done) == 4


def test_tuning_publishes_nothing(counted: tuple[Experiment, list[Run]], tmp_path: Path) -> None:
    experiment, done = counted
    (tmp_path / "file").touch()
    options = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--held-out"]
    assert CliRunner().invoke(command(experiment), options).exit_code == 0
    assert {r.settings["measured"] for r in done} == {"held-out"}
    assert not (tmp_path / "result.json").exists()


def test_settings_change_only_to_tune(
    counted: tuple[Experiment, list[Run]], tmp_path: Path
) -> None:
    experiment, done = counted
    (tmp_path / "file").touch()
    options = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--set", "epochs=5"]
    run = CliRunner()
    assert "needs --held-out" in run.invoke(command(experiment), options).output
    wrong = [*options, "--set", "epoch=5", "--held-out"]
    assert "the settings are epochs" in run.invoke(command(experiment), wrong).output
    assert not done
    assert run.invoke(command(experiment), [*options, "--held-out"]).exit_code == 0
    assert {r.settings["epochs"] for r in done} == {5}
