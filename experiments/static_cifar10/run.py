"""A trained ResNet-20, pruned to exact transposable masks and fine-tuned under them.

python -m experiments.static_cifar10.run [--data DIR] [--config NAME] [--seed N]
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments import classify, figures, tables
from experiments.command import Experiment, command
from experiments.methods import Method, references
from experiments.models.resnet import load_resnet
from experiments.runs import Run, RunStore

BUDGET = classify.Budget(epochs=3, peak=0.02, warm_up=0.1)
LONGER = {"epochs": 9}
METHODS = (
    Method("dense"),
    Method("4:8T", "4:8T"),
    Method("2:4T", "2:4T"),
    Method("4:8T after AdaPrune", "4:8T", calibrated=True),
    Method("2:4T after AdaPrune", "2:4T", calibrated=True),
    Method("dense, 9 epochs", changes=LONGER),
    Method("4:8T, 9 epochs", "4:8T", changes=LONGER),
)
CHECKPOINT = "models/resnet20_jpeg.safetensors"
SCORE = tables.Score("top1", references(METHODS))


def train(method: Method, run: Run, split: classify.Split, store: RunStore) -> dict[str, Any]:
    torch.manual_seed(run.seed)
    net = load_resnet(split.data / CHECKPOINT, 20)
    return classify.train(net, method, split, run, store)


def table(document: dict[str, Any]) -> str:
    rows = [
        [*cells, f"{sum(run['train_loss'][-1] for run in runs) / len(runs):.4f}"]
        for cells, runs in tables.compared(document, SCORE)
    ]
    head = ("weights", "seeds", "top-1, % (lowest to highest)", "against dense", "training loss")
    return tables.markdown(head, rows)


EXPERIMENT = Experiment(
    folder=Path(__file__).parent,
    methods=METHODS,
    seeds=(0, 1, 2),
    settings=asdict(BUDGET),
    needed=("cifar10/train_jpeg.npz", "cifar10/test.npz", CHECKPOINT),
    load=classify.load_split,
    train=train,
    score=SCORE.key,
    draw=figures.drawing(
        figures.Panels(
            score=SCORE,
            score_label="top-1 on the test images after the last epoch, %",
            curve="train_loss",
            curve_label="training loss",
            targets=((-0.5, "-0.5"), (-1.0, "-1.0")),
        )
    ),
    table=table,
)
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
