"""ResNet-20 on CIFAR-10 from scratch, dense and under N:M masks that follow the weights.

python -m experiments.dynamic_cifar10.run [--data DIR] [--config NAME] [--seed N]
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments import classify, figures, tables
from experiments.command import Experiment, Long, command
from experiments.methods import Method, references
from experiments.models.resnet import ResNet
from experiments.runs import Run, RunStore
from transposable.train import SRSTE

BUDGET = classify.Budget(epochs=10, peak=0.1, warm_up=0.2)
RECIPE = SRSTE(2e-4)  # the published lambda
METHODS = (
    Method("dense"),
    Method("2:4 SR-STE, every step", "2:4", RECIPE, 1),
    Method("4:8T exact, every step", "4:8T", RECIPE, 1),
    Method("2:4T exact, every step", "2:4T", RECIPE, 1),
    Method("4:8T exact, every 40", "4:8T", RECIPE, 40),
    Method("2:4T exact, every 40", "2:4T", RECIPE, 40),
    Method("4:8T 2-approx, every 40", "4:8T", RECIPE, 40, "two_approx"),
    Method("2:4T 2-approx, every 40", "2:4T", RECIPE, 40, "two_approx"),
)
SCORE = tables.Score("top1", references(METHODS))


def train(method: Method, run: Run, split: classify.Split, store: RunStore) -> dict[str, Any]:
    torch.manual_seed(run.seed)
    return classify.train(ResNet(20), method, split, run, store)


def table(document: dict[str, Any]) -> str:
    rows = []
    for cells, runs in tables.compared(document, SCORE):
        sparse = "refresh_share" in runs[0]
        rows.append(
            [
                *cells,
                f"{runs[0]['train_loss'][-1]:.4f}",
                f"{100 * runs[0]['flip_rate'][0]:.3f}" if sparse else "",
                f"{100 * runs[0]['flip_rate'][-1]:.3f}" if sparse else "",
                f"{runs[0]['kept'][-1]:.4f}" if sparse else "",
                f"{100 * tables.mean(runs, 'refresh_share'):.2f}" if sparse else "",
            ]
        )
    head = (
        "masks",
        "seeds",
        "top-1, %",
        "against dense",
        "training loss",
        "flips, first epoch, %",
        "flips, last epoch, %",
        "magnitude kept",
        "refresh, % of time",
    )
    return tables.markdown(head, rows)


EXPERIMENT = Experiment(
    folder=Path(__file__).parent,
    methods=METHODS,
    seeds=(0,),
    settings=asdict(BUDGET),
    needed=("cifar10/train_jpeg.npz", "cifar10/test.npz"),
    load=classify.load_split,
    train=train,
    score=SCORE.key,
    draw=figures.drawing(
        figures.Panels(
            score=SCORE,
            score_label="top-1 on the test images after the last epoch, %",
            curve="flip_rate",
            curve_label="mask entries that flip, %",
            curve_scale=100,
            targets=((-0.5, "-0.5"),),
            logarithmic=True,
        )
    ),
    table=table,
    long=Long({"epochs": 60}, METHODS),
)
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
