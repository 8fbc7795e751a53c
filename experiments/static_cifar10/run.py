"""A trained ResNet-20, pruned to exact transposable masks and fine-tuned under them.

python -m experiments.static_cifar10.run [--data DIR] [--config NAME] [--seed N]
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from experiments import classify
from experiments.methods import Method
from experiments.models.resnet import load_resnet
from experiments.runs import RunStore

HERE = Path(__file__).parent
BUDGET = classify.Budget(epochs=3, peak=0.02, warm_up=0.1)
METHODS = (Method("dense"), Method("4:8T", "4:8T"), Method("2:4T", "2:4T"))


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"))
@click.option("--work", type=click.Path(path_type=Path), default=Path("out/static_cifar10"))
@click.option("--config", "names", multiple=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2))
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
                net = load_resnet(data / "models" / "resnet20_jpeg.safetensors", 20)
                result = classify.train(net, method, BUDGET, split, run, store)
                print(f"{method.name:<34} seed {seed}  top-1 {result['top1']:.2f}", flush=True)


if __name__ == "__main__":
    main()
