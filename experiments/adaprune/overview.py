"""What was aimed at and what was reached, and both forms of AdaPrune side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.tables import markdown

MAGNITUDE = "magnitude"
PAIRS = {
    "sequential": ("AdaPrune, to be compared", "AdaPrune as published"),
    "parallel": ("AdaPrune, to be compared, parallel", "AdaPrune as published, parallel"),
}
"""Exact and published form with the same masks, calibration and aim. In parallel order both fit the
same inputs; in sequential order each layer has those that its own predecessors leave."""


@dataclass(frozen=True)
class Target:
    """What the headline configuration has to reach, fixed before anything was measured.

    ``reached(score, dense, masked)`` is given the score of the mask by magnitude alone, too.
    """

    text: str
    reached: Callable[[float, float, float], bool]


TARGETS = {
    "resnet20_jpeg 4:8T": Target("87.2", lambda score, dense, masked: score >= 87.2),
    "resnet20 2:4T": Target("79.0", lambda score, dense, masked: score >= 79.0),
    "resnet32 2:4T": Target("dense - 2", lambda score, dense, masked: score >= dense - 2),
    "MiniLM 2:4T": Target("more than the mask", lambda score, dense, masked: score > masked),
    "MiniLM 4:8T": Target(
        "dense - 1, more than the mask",
        lambda score, dense, masked: score >= dense - 1 and score > masked,
    ),
}


def overview(document: dict[str, Any], headline: str) -> str:
    """One row for each task of which the headline and the magnitude mask were run."""
    rows = []
    for task in document["tasks"]:
        runs = {run["config"]: run for run in task["runs"]}
        if headline not in runs or MAGNITUDE not in runs:
            continue
        dense, masked = task["dense"], runs[MAGNITUDE]["score_masked"]
        score, form = runs[headline]["score"], f".{task['digits']}f"
        target = TARGETS.get(f"{task['task']} {task['pattern']}")
        best = best_of(task)
        rows.append(
            [
                f"{task['task']} {task['pattern']}: {task['score']}",
                format(dense, form),
                format(masked, form),
                f"**{format(score, form)}**",
                format(score - dense, f"+{form}"),
                target.text if target else "",
                ("yes" if target.reached(score, dense, masked) else "no") if target else "",
                f"{best['config']}: {format(best['score'], form)}",
            ]
        )
    head = (
        "",
        "dense",
        "mask by magnitude alone",
        headline,
        "against dense",
        "to reach",
        "reached",
        "best of all methods",
    )
    return markdown(head, rows) if rows else ""


def best_of(task: dict[str, Any]) -> dict[str, Any]:
    """The run with the best score; a loss is best when it is low."""
    lower = task["score"].startswith("loss")
    best: dict[str, Any] = (min if lower else max)(task["runs"], key=lambda run: run["score"])
    return best


def comparison(document: dict[str, Any]) -> str:
    """Layer errors and times of exact and published AdaPrune, for tasks that have both."""
    rows = []
    for task in document["tasks"]:
        runs = {run["config"]: run for run in task["runs"]}
        form = f".{task['digits']}f"
        for order, names in PAIRS.items():
            if not runs.keys() >= set(names):
                continue
            exact, published = (runs[name] for name in names)
            rows.append(
                [
                    f"{task['task']} {task['pattern']}: {task['score']}",
                    order,
                    format(published["score"], form),
                    format(exact["score"], form),
                    f"{published['error']:.4f}",
                    f"{exact['error']:.4f}",
                    f"{published['seconds']:.1f}",
                    f"{exact['seconds']:.1f}",
                    f"{published['seconds'] / exact['seconds']:.1f}",
                ]
            )
    head = (
        "masks by magnitude",
        "order",
        "published",
        "exact",
        "layer error, published",
        "exact",
        "seconds, published",
        "exact",
        "times faster",
    )
    return markdown(head, rows) if rows else ""
