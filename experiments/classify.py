"""One training run of a CIFAR-10 network under one method; the last epoch's accuracy counts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from experiments import cifar
from experiments.methods import CALIBRATION, Method, refreshes, sparse_weights
from experiments.runs import Run, RunStore
from experiments.training import Rate, Task, fit

# As in the one-shot experiment: the first convolution and the classifier stay dense.
DENSE_LAYERS = ("conv1", "linear")
HELD_OUT = 5000


@dataclass(frozen=True)
class Budget:
    """SGD with Nesterov momentum, the same for every method."""

    epochs: int
    peak: float
    warm_up: float
    batch: int = 128
    momentum: float = 0.9
    decay: float = 5e-4


@dataclass(frozen=True)
class Split:
    """Training images with their border, and the images that measure the last epoch."""

    train: cifar.Images
    measured: cifar.Images
    data: Path


def load_split(data: Path, held_out: bool) -> Split:
    """All training images and the test images; to tune, 5,000 training images held out instead."""
    train = cifar.load_train(data)
    if held_out:
        cut = len(train) - HELD_OUT
        train, measured = train.part(0, cut), train.part(cut, len(train))
    else:
        measured = cifar.load_test(data)
    return Split(cifar.Images(cifar.with_border(train.pixels), train.labels), measured, data)


def train(
    net: nn.Module, method: Method, split: Split, run: Run, store: RunStore
) -> dict[str, Any]:
    """Train one network as the run's settings say and keep its result."""
    budget = Budget(**{field.name: run.settings[field.name] for field in fields(Budget)})
    net = net.to(memory_format=torch.channels_last)
    controller = method.attach(
        net, exclude=DENSE_LAYERS, calibration=cifar.plain(split.train.part(0, CALIBRATION))
    )
    device = run.settings.get("device", "cpu")
    net.to(device)
    task = Task(
        net=net,
        optimizer=torch.optim.SGD(
            net.parameters(),
            lr=budget.peak,
            momentum=budget.momentum,
            weight_decay=budget.decay,
            nesterov=True,
        ),
        rate=Rate(budget.peak, budget.warm_up),
        epochs=budget.epochs,
        steps_per_epoch=-(-len(split.train) // budget.batch),
        batches=lambda generator: cifar.batches(split.train, budget.batch, generator),
        loss=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        controller=controller,
        device=device,
    )
    progress = fit(task, run, store)
    return store.finish(
        run,
        {
            "top1": cifar.top1(net, split.measured),
            "train_loss": progress.losses,
            "seconds": round(progress.seconds, 1),
            **sparse_weights(controller),
            **refreshes(controller, task.steps_per_epoch, progress.seconds),
        },
    )
