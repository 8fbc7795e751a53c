"""ResNet-20 on CIFAR-10 from scratch, dense and under N:M masks that follow the weights.

python -m experiments.dynamic_cifar10.run [--data DIR] [--config NAME] [--seed N]
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from experiments import classify
from experiments.methods import Method
from experiments.models.resnet import ResNet
from experiments.runs import RunStore
from transposable.train import SRSTE

HERE = Path(__file__).parent
BUDGET = classify.Budget(epochs=10, peak=0.1, warm_up=0.2)
METHODS = (
    Method("dense"),
    Method("2:4 SR-STE, every step", "2:4", SRSTE(2e-4), 1),
    Method("4:8T exact, every step", "4:8T", SRSTE(2e-4), 1),
    Method("2:4T exact, every step", "2:4T", SRSTE(2e-4), 1),
    Method("4:8T exact, every 40", "4:8T", SRSTE(2e-4), 40),
    Method("2:4T exact, every 40", "2:4T", SRSTE(2e-4), 40),
    Method("4:8T 2-approx, every 40", "4:8T", SRSTE(2e-4), 40, "two_approx"),
    Method("2:4T 2-approx, every 40", "2:4T", SRSTE(2e-4), 40, "two_approx"),
)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"))
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/dynamic_cifar10"))
@click.option("--config", "names", multiple=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,))
@click.option("--validate", is_flag=True)
def main(
    data: Path, work: Path, names: tuple[str, ...], seeds: tuple[int, ...], validate: bool
) -> None:
    store = RunStore(work)
    split = classify.load_split(data, validate)
    for seed in seeds:
        for method in METHODS:
            if names and method.name not in names:
                continue
            run = classify.planned(method, BUDGET, seed, split.name)
            if store.result(run) is None:
                torch.manual_seed(seed)
                result = classify.train(ResNet(20), method, BUDGET, split, run, store)
                print(f"{method.name:<34} seed {seed}  top-1 {result['top1']:.2f}", flush=True)


if __name__ == "__main__":
    main()
