"""The figures of all experiments in two tables, for the README of the project.

python -m experiments.summary [README.md]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from experiments import tables

FOLDER = Path(__file__).parent
ROWS: tuple[tuple[str, str, str, float, str, dict[str, str]], ...] = (
    (
        "dynamic_cifar10",
        "ResNet-20 from scratch, CIFAR-10: top-1, %",
        "top1",
        1,
        ".2f",
        {
            "dense": "dense",
            "2:4": "2:4 SR-STE, every step",
            "4:8T": "4:8T exact, every step",
            "2:4T": "2:4T exact, every step",
        },
    ),
    (
        "static_cifar10",
        "trained ResNet-20, pruned and fine-tuned: top-1, %",
        "top1",
        1,
        ".2f",
        {"dense": "dense", "4:8T": "4:8T", "2:4T": "2:4T"},
    ),
    (
        "static_cifar10",
        "the same, pruned by AdaPrune",
        "top1",
        1,
        ".2f",
        {"dense": "dense", "4:8T": "4:8T after AdaPrune"},
    ),
    (
        "finetune_minilm",
        "MiniLM, pruned and fine-tuned, STS-B: 100 x Spearman",
        "spearman",
        100,
        ".2f",
        {"dense": "dense", "4:8T": "4:8T", "2:4T": "2:4T"},
    ),
    (
        "finetune_minilm",
        "the same, pruned by AdaPrune",
        "spearman",
        100,
        ".2f",
        {"dense": "dense", "4:8T": "4:8T after AdaPrune"},
    ),
    (
        "pretrain_gpt",
        "GPT of 10 million parameters, WikiText-2: loss in nats (lower is better)",
        "validation_loss",
        1,
        ".4f",
        {"dense": "dense", "2:4T": "2:4T, dense tail"},
    ),
)
PATTERNS = ("dense", "2:4", "4:8T", "2:4T")
PRUNED = ("magnitude", "SparseGPT", "ALPS", "AdaPrune")


def training() -> str:
    """One row for each experiment: means over seeds, and differences to dense by seed."""
    rows = []
    for folder, title, key, factor, form, configs in ROWS:
        document = json.loads((FOLDER / folder / "result.json").read_text(encoding="utf-8"))
        grouped = tables.by_config(document)
        score = tables.Score(key, {}, factor, int(form[1]))
        dense = grouped["dense"]
        cells, counts = [], []
        for pattern in PATTERNS:
            runs = grouped.get(configs.get(pattern, ""))
            cells.append(_cell(runs, dense, score))
            counts.append(len(runs or dense))
        low, high = min(counts), max(counts)
        seeds = str(low) if low == high else f"{low} to {high}"
        rows.append([f"[{title}](experiments/{folder}/README.md)", seeds, *cells])
    return tables.markdown(("training", "seeds", *PATTERNS), rows)


def pruning() -> str:
    """One row for each network and pattern: the score after pruning, by method."""
    document = json.loads((FOLDER / "adaprune" / "result.json").read_text(encoding="utf-8"))
    rows = []
    for task in document["tasks"]:
        runs = {run["config"]: run for run in task["runs"]}
        shown = [runs["magnitude"]["score_masked"] if "magnitude" in runs else None]
        shown += [runs[name]["score"] if name in runs else None for name in PRUNED]
        cells = ["" if value is None else f"{value:.{task['digits']}f}" for value in shown]
        name = f"{task['task']} {task['pattern']}: {task['score']}"
        rows.append([name, f"{task['dense']:.{task['digits']}f}", *cells])
    head = ("network", "dense", "mask by magnitude alone", *PRUNED)
    return tables.markdown(head, rows)


def with_summary(text: str) -> str:
    """A text with the tables between their markers replaced."""
    for marker, table in (("training", training), ("pruning", pruning)):
        before, rest = text.split(f"<!-- {marker} -->")
        after = rest.split(f"<!-- /{marker} -->")[1]
        text = f"{before}<!-- {marker} -->\n{table()}\n<!-- /{marker} -->{after}"
    return text


def _cell(
    runs: list[dict[str, Any]] | None, dense: list[dict[str, Any]], score: tables.Score
) -> str:
    if runs is None:
        return ""
    mean = format(sum(score.of(run) for run in runs) / len(runs), f".{score.digits}f")
    difference = tables.paired(runs, dense, score)
    if runs is dense or difference is None:
        return mean
    return f"{mean} ({difference:+.{score.digits}f})"


if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    file.write_text(with_summary(file.read_text(encoding="utf-8")), encoding="utf-8")
