"""Accuracy of a ResNet under each pattern: mask alone, after AdaPrune, after short fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional as F

from experiments import cifar
from experiments.adaprune import run as adaprune
from experiments.adaprune.tasks import tasks
from experiments.classify import DENSE_LAYERS
from experiments.methods import Method, sparse_weights
from experiments.models.resnet import ResNet, load_resnet
from experiments.paper.common import PATTERNS, Session
from experiments.runs import Run, RunStore
from experiments.training import Rate, Task, fit

NETWORKS: Final = {"resnet20_jpeg": 20, "resnet20": 20, "resnet32": 32}
"""Depth by name."""
TUNED: Final = ("resnet20_jpeg", "resnet20")
"""Those that are fine-tuned as well."""
DENSE: Final = "dense"
STAGES: Final = ("one-shot", "AdaPrune", "fine-tuned")
SEEDS: Final = (0, 1, 2)
NEEDED: Final = (
    "cifar10/test.npz",
    "cifar10/calib.npz",
    "cifar10/train_jpeg.npz",
    *(f"models/{name}.safetensors" for name in NETWORKS),
)


@dataclass(frozen=True)
class Budget:
    """The rate of the static experiment for a small part of its steps, in float32."""

    steps: int = 100
    batch: int = 128
    peak: float = 0.02
    warm_up: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4


@dataclass(frozen=True)
class Job:
    """One network under one pattern at one stage; only fine-tuning depends on a seed."""

    network: str
    pattern: str
    stage: str
    seed: int = 0

    def run(self, budget: Budget) -> Run:
        settings: dict[str, Any] = {
            "network": self.network,
            "pattern": self.pattern,
            "stage": self.stage,
        }
        if self.stage == "fine-tuned":
            settings |= vars(budget)
        if self.stage == "AdaPrune":
            settings["method"] = repr(_adaprune().method)
        return Run(f"{self.network} {self.pattern} {self.stage}", self.seed, settings)


def jobs() -> list[Job]:
    """Everything to be measured: the cheap stages, one seed of both networks, then the others."""
    cheap = [
        Job(network, pattern, stage)
        for stage in STAGES[:2]
        for network in NETWORKS
        for pattern in ((DENSE, *PATTERNS) if stage == STAGES[0] else PATTERNS)
    ]
    order = [(network, SEEDS[0]) for network in TUNED]
    order += [(network, seed) for network in TUNED for seed in SEEDS[1:]]
    return cheap + [
        Job(network, pattern, STAGES[2], seed)
        for network, seed in order
        for pattern in (DENSE, *PATTERNS)
    ]


def measure(session: Session, chosen: Sequence[Job], budget: Budget) -> None:
    """Finish what is missing, until the session's time is over."""
    store = RunStore(session.work / "accuracy")
    todo = [job for job in chosen if store.result(job.run(budget)) is None]
    if not todo:
        return
    session.need("diversity", list(NEEDED))
    torch.set_num_threads(session.threads)
    test = cifar.load_test(session.data)
    train: cifar.Images | None = None
    for job in todo:
        if session.over:
            return
        run = job.run(budget)
        if job.stage == "AdaPrune":
            result = calibrated(session, job, test)
        elif job.stage == "one-shot":
            result = scored(prepared(session.data, job)[0], test)
        else:
            if train is None:
                train = cifar.load_train(session.data)
            result = finetuned(session, job, run, budget, train, test, store)
        store.finish(run, result)
        print(f"{run.config:<36} seed {job.seed}  {result['top1']:.2f}", flush=True)


def prepared(data: Path, job: Job) -> tuple[ResNet, Any]:
    """The trained network under the best mask by magnitude, and what keeps it there."""
    depth = NETWORKS[job.network]
    net = load_resnet(data / "models" / f"{job.network}.safetensors", depth)
    method = Method(job.pattern, None if job.pattern == DENSE else job.pattern)
    controller = method.attach(net, exclude=DENSE_LAYERS)
    sparse_weights(controller)
    return net, controller


def scored(net: torch.nn.Module, test: cifar.Images) -> dict[str, Any]:
    """Top-1, and every single image's outcome: networks are compared image by image."""
    right = cifar.right(net, test)
    packed = int("".join("1" if hit else "0" for hit in right.tolist()), 2)
    return {"top1": 100 * int(right.sum()) / len(test), "images": len(test), "right": f"{packed:x}"}


def hits(result: dict[str, Any]) -> torch.Tensor:
    """The outcomes that `scored` stored, bool [images]."""
    bits = f"{int(result['right'], 16):0{result['images']}b}"
    return torch.tensor([bit == "1" for bit in bits])


def finetuned(
    session: Session,
    job: Job,
    run: Run,
    budget: Budget,
    train: cifar.Images,
    test: cifar.Images,
    store: RunStore,
) -> dict[str, Any]:
    """A fixed number of steps, as the static experiment takes them, under the fixed mask."""
    net, controller = prepared(session.data, job)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches(generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # Only the images that are used get a border: all of them would be 240 MB.
        order = torch.randperm(len(train), generator=generator)[: budget.steps * budget.batch]
        bordered = cifar.Images(cifar.with_border(train.pixels[order]), train.labels[order])
        yield from islice(cifar.batches(bordered, budget.batch, generator), budget.steps)

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
        epochs=1,
        steps_per_epoch=budget.steps,
        batches=batches,
        loss=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        controller=controller,
        autocast=False,
    )
    progress = fit(task, run, store)
    return {
        **scored(net, test),
        "train_loss": progress.losses[-1],
        "seconds": round(progress.seconds, 1),
        **sparse_weights(controller),
    }


def _adaprune() -> adaprune.Config:
    return next(config for config in adaprune.CONFIGS if config.name == adaprune.HEADLINE)


def calibrated(session: Session, job: Job, test: cifar.Images) -> dict[str, Any]:
    """The headline configuration of the AdaPrune experiment under another pattern."""
    seen: list[dict[str, Any]] = []

    def measure(net: torch.nn.Module) -> float:
        seen.append(scored(net, test))
        return float(seen[-1]["top1"])

    task = next(task for task in tasks(session.data) if task.name == job.network)
    task = replace(task, pattern=job.pattern, measure=measure)
    found = adaprune.run_one(task, _adaprune(), session.threads)
    # The mask alone is measured first, the pruned network last.
    return {**seen[-1], "error": found["error"], "seconds": found["seconds"]}
