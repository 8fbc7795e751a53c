"""The command line that all training experiments share: train what is missing, then publish."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from experiments.methods import Method
from experiments.runs import Run, RunStore
from experiments.tables import publish


@dataclass(frozen=True)
class Long:
    """The larger experiment of the same kind, for a machine with a GPU: what is otherwise there."""

    settings: dict[str, Any]
    methods: Sequence[Method]


@dataclass(frozen=True)
class Experiment:
    """What differs between the experiments.

    ``load(data, held_out)`` gives the data, measured on a part of the training set if held_out;
    ``train(method, run, data, store)`` trains once and returns the stored result.
    """

    folder: Path
    methods: Sequence[Method]
    seeds: Sequence[int]
    settings: dict[str, Any]
    needed: Sequence[str]
    load: Callable[[Path, bool], Any]
    train: Callable[[Method, Run, Any, RunStore], dict[str, Any]]
    score: str
    draw: Callable[[dict[str, Any], Path], None]
    table: Callable[[dict[str, Any]], str]
    long: Long | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    def run(
        self, method: Method, seed: int, held_out: bool, changed: dict[str, Any] | None = None
    ) -> Run:
        """One planned run; ``changed`` settings are for tuning only."""
        measured = "held-out" if held_out else "test"
        settings = {**self.settings, **method.changes, **(changed or {})}
        return Run(method.name, seed, {**method.settings(), **settings, "measured": measured})


def command(experiment: Experiment) -> click.Command:
    """``python -m experiments.NAME.run``."""
    known = [method.name for method in experiment.methods]
    larger = [] if experiment.long is None else [m.name for m in experiment.long.methods]
    named = list(dict.fromkeys(known + larger))

    @click.command(help=f"Train what is missing of {experiment.name}, then write its results.")
    @click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("../shared/data"),
        show_default=True,
        help=f"Folder with {', '.join(experiment.needed)}.",
    )
    @click.option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        help=f"Finished and unfinished runs. [default: out/{experiment.name}]",
    )
    @click.option(
        "--config",
        "names",
        multiple=True,
        type=click.Choice(named),
        help="Only these.",
    )
    @click.option("--seed", "seeds", multiple=True, type=int, default=tuple(experiment.seeds))
    @click.option(
        "--held-out", is_flag=True, help="To tune: measure on a part of the training set."
    )
    @click.option(
        "--set", "changes", multiple=True, metavar="NAME=VALUE", help="Another setting, to tune."
    )
    @click.option("--device", default="cpu", show_default=True, help="Where the networks are.")
    @click.option(
        "--long", is_flag=True, help="The larger experiment, for a GPU; nothing is published."
    )
    @click.option("--publish-only", is_flag=True, help="Train nothing; write what is finished.")
    def main(
        data: Path,
        work: Path | None,
        names: tuple[str, ...],
        seeds: tuple[int, ...],
        held_out: bool,
        changes: tuple[str, ...],
        device: str,
        long: bool,
        publish_only: bool,
    ) -> None:
        changed = _changed(experiment, changes, held_out)
        methods = experiment.methods
        if long:
            if experiment.long is None:
                raise click.UsageError(f"{experiment.name} has no larger form")
            changed = {**experiment.long.settings, **changed}
            methods = experiment.long.methods
        if device != "cpu":
            changed = {**changed, "device": device}
        apart = ["long"] * long + [device] * (device != "cpu")
        if work is None:
            parts = [experiment.name, *["held-out"] * held_out, *changes, *apart]
            work = Path("out") / "-".join(parts)
        store = RunStore(work)
        if not publish_only:
            wanted = [m for m in methods if not names or m.name in names]
            planned = [
                (method, experiment.run(method, seed, held_out, changed))
                for seed in seeds
                for method in wanted
            ]
            _train(experiment, store, planned, data, held_out)
        if held_out or apart or (names and not publish_only):
            return
        document = {"experiment": experiment.name, "runs": store.results(known)}
        if not document["runs"]:
            raise click.ClickException(
                f"{experiment.name}: no finished run in {work}; run it without --publish-only first"
            )
        publish(experiment.folder, document, experiment.draw, experiment.table)
        print(f"{experiment.name}: {len(document['runs'])} runs published")

    return main


def _changed(experiment: Experiment, changes: Sequence[str], held_out: bool) -> dict[str, Any]:
    """Settings by name from NAME=VALUE, values as JSON."""
    if changes and not held_out:
        raise click.UsageError("--set is for tuning, which needs --held-out")
    changed = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in experiment.settings:
            raise click.UsageError(
                f"--set {change}: the settings are {', '.join(experiment.settings)}"
            )
        changed[name] = json.loads(value)
    return changed


def _train(
    experiment: Experiment,
    store: RunStore,
    planned: Sequence[tuple[Method, Run]],
    data: Path,
    held_out: bool,
) -> None:
    missing = [name for name in experiment.needed if not (data / name).exists()]
    if missing:
        raise click.ClickException(
            f"{experiment.name}: {', '.join(missing)} not found in {data}; this experiment ships "
            "no data; pass the folder that holds it with --data DIR"
        )
    todo = [(method, run) for method, run in planned if store.result(run) is None]
    if not todo:
        return
    loaded = experiment.load(data, held_out)
    for method, run in todo:
        result = experiment.train(method, run, loaded, store)
        score = json.dumps(result[experiment.score])
        print(f"{run.config:<34} seed {run.seed}  {experiment.score} {score}", flush=True)
