"""The figures of all training experiments in one table, for the README of the project.

python -m experiments.summary [README.md]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from experiments import tables

BEGIN, END = "<!-- training -->", "<!-- /training -->"
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


def summary() -> str:
    """A table with one row for each experiment: mean of the last epoch over the seeds."""
    rows = []
    for folder, title, key, factor, form, configs in ROWS:
        document = json.loads((FOLDER / folder / "result.json").read_text(encoding="utf-8"))
        grouped = tables.by_config(document)
        runs = {pattern: grouped[config] for pattern, config in configs.items()}
        cells = [_cell(runs.get(pattern), key, factor, form) for pattern in PATTERNS]
        rows.append([f"[{title}](experiments/{folder}/README.md)", str(len(runs["dense"])), *cells])
    return tables.markdown(("training", "seeds", *PATTERNS), rows)


def with_summary(text: str) -> str:
    """A text with the table between its markers replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{summary()}\n{END}{rest.split(END)[1]}"


def _cell(runs: list[dict[str, Any]] | None, key: str, factor: float, form: str) -> str:
    return "" if runs is None else format(factor * tables.mean(runs, key), form)


if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
    file.write_text(with_summary(file.read_text(encoding="utf-8")), encoding="utf-8")
