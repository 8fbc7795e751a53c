"""From runs to what is committed, and the committed files against each other."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from experiments import figures, tables
from experiments.command import Experiment, command
from experiments.methods import Method, references
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
    score = tables.Score("x", {}, digits=1)
    dense = [{"seed": 0, "x": 1.0}, {"seed": 1, "x": 3.0}]
    assert tables.paired([{"seed": 1, "x": 4.0}], dense, score) == 1.0
    assert tables.paired([{"seed": 2, "x": 4.0}], dense, score) is None
    assert tables.spread(dense, score) == "2.0 (1.0 to 3.0)"
    assert tables.spread(dense[:1], score) == "1.0"
    percent = tables.Score("x", {}, scale=100, relative=True)
    assert tables.paired([{"seed": 1, "x": 4.5}], dense, percent) == 50.0
    assert tables.spread(dense[:1], percent) == "100.00"


LONGER = {"epochs": 9}
LONG = (Method("long dense", changes=LONGER), Method("long 4:8T", "4:8T", changes=LONGER))
REFERENCES = references((Method("dense"), Method("4:8T", "4:8T"), *LONG))


def test_a_longer_schedule_has_its_own_reference() -> None:
    assert REFERENCES == {
        "dense": "dense",
        "4:8T": "dense",
        "long dense": "long dense",
        "long 4:8T": "long dense",
    }
    patterns = (None, "4:8T", None, "4:8T")
    runs = [
        {"config": config, "seed": 0, "x": x, "settings": {"pattern": pattern}}
        for config, x, pattern in zip(REFERENCES, (80.0, 79.5, 90.0, 89.75), patterns, strict=True)
    ]
    score = tables.Score("x", REFERENCES)
    rows = [cells for cells, _ in tables.compared({"runs": runs}, score)]
    assert [row[-1] for row in rows] == ["", "-0.50", "", "-0.25"]
    unfinished = [cells for cells, _ in tables.compared({"runs": runs[3:]}, score)]
    assert unfinished == [["long 4:8T", "1", "89.75", ""]]
    panels = figures.Panels(score, "x", "curve", "c", targets=((-0.5, "-0.5"),))
    for part, lines in (
        (runs, {(80.0, -0.5, 1.5), (79.5, -0.5, 1.5), (90.0, 1.5, 3.5), (89.5, 1.5, 3.5)}),
        (runs[3:], set()),
    ):
        panel = Figure().subplots()
        figures.draw_scores(panel, tables.by_config({"runs": part}), panels)
        drawn = [line.get_segments()[0] for line in panel.collections]
        assert {(x, top, bottom) for (x, top), (_, bottom) in drawn} == lines


@pytest.mark.parametrize("methods", [LONG[1:], (*LONG, Method("again", changes=LONGER))])
def test_a_reference_is_one(methods: tuple[Method, ...]) -> None:
    with pytest.raises(ValueError, match="dense configurations with its changes"):
        references(methods)


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

    methods = (Method("dense"), Method("4:8T", "4:8T"))
    score = tables.Score("score", references(methods), digits=1)
    return Experiment(
        folder=tmp_path,
        methods=methods,
        seeds=(0, 1),
        settings={"epochs": 2},
        needed=("file",),
        load=lambda data, held_out: held_out,
        train=train,
        score="score",
        draw=figures.drawing(figures.Panels(score, "s", "curve", "c", targets=((-0.5, "t"),))),
        table=lambda document: tables.markdown(
            ("config", "seeds", "score", "against dense"),
            [cells for cells, _ in tables.compared(document, score)],
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
    assert "| 4:8T | 2 | 1.5 (1.0 to 2.0) | +0.00 |" in (tmp_path / "README.md").read_text(
        encoding="utf-8"
    )
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
