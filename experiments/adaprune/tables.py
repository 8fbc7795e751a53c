"""From finished runs to result.json, figure.png and the tables of README.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from experiments import tables as shared
from experiments.adaprune import conversion
from experiments.adaprune.figure import draw
from experiments.adaprune.overview import comparison, overview
from experiments.adaprune.tasks import Task
from experiments.runs import RunStore


def publish(
    folder: Path, store: RunStore, every: Sequence[Task], configs: Sequence[str], headline: str
) -> None:
    """Write what is finished."""
    document = document_of(store, every, configs)
    if not document["tasks"]:
        raise click.ClickException(f"adaprune: no finished run in {store.folder}")
    text = json.dumps(document, indent=1) + "\n"
    (folder / "result.json").write_text(text, encoding="utf-8")
    draw(document, folder / "figure.png")
    readme = folder / "README.md"
    readme.write_text(
        shared.with_table(readme.read_text(encoding="utf-8"), table(document, headline)),
        encoding="utf-8",
    )


def document_of(store: RunStore, every: Sequence[Task], configs: Sequence[str]) -> dict[str, Any]:
    """All finished runs by task, in the order of the methods."""
    found = []
    for task in every:
        names = [f"{task.key}: {name}" for name in ("dense", *configs)]
        runs = {run["config"]: run for run in store.results(names)}
        pruned = [
            {**runs[name], "config": name.split(": ", 1)[1]} for name in names[1:] if name in runs
        ]
        if names[0] in runs and pruned:
            found.append(
                {
                    "task": task.name,
                    "pattern": task.pattern,
                    "score": task.score,
                    "digits": task.digits,
                    "dense": runs[names[0]]["score"],
                    "runs": pruned,
                }
            )
    names = [f"{conversion.NAME} {sparsity} %" for sparsity in conversion.SPARSITIES]
    return {"experiment": "adaprune", "tasks": found, "conversion": store.results(names)}


def table(document: dict[str, Any], headline: str) -> str:
    """What was reached, one table for each task, and one of the conversions."""
    parts = []
    for title, rows in (
        ("### What was reached", overview(document, headline)),
        ("### AdaPrune exact and as published", comparison(document)),
    ):
        if rows:
            parts += [title, "", rows, ""]
    parts += ["### All methods", ""]
    for task in document["tasks"]:
        digits = task["digits"]
        rows = [
            [
                f"**{run['config']}**" if run["config"] == headline else run["config"],
                f"{run['score_masked']:.{digits}f}",
                f"{run['score']:.{digits}f}",
                f"{run['error_masked']:.4f}",
                f"{run['error']:.4f}",
                f"{run['seconds']:.1f}",
                "" if run["peak_mib"] is None else f"{run['peak_mib']}",
            ]
            for run in task["runs"]
        ]
        head = (
            f"{task['task']} {task['pattern']}",
            f"mask alone: {task['score']}",
            "after",
            "layer error, mask alone",
            "after",
            "seconds",
            "MiB",
        )
        title = f"Dense: {task['dense']:.{digits}f}."
        parts += [title, "", shared.markdown(head, rows), ""]
    rows = [
        [
            f"{run['sparsity']} %",
            f"{run['start']:.2f}",
            one["pattern"],
            f"{100 * one['violated']:.1f}",
            f"{one['masked']:.2f}",
            f"{one['adaprune']:.2f}",
        ]
        for run in document["conversion"]
        for one in run["converted"]
    ]
    if rows:
        parts += ["### From unstructured sparsity", ""]
        head = ("zeros before", "top-1, %", "to", "violated, %", "mask alone", "AdaPrune")
        parts += [shared.markdown(head, rows), ""]
    return "\n".join(parts).rstrip()
