"""The training loop of all experiments: bfloat16 autocast, one rate schedule, resumable by epoch.

It is the loop of any PyTorch program; the sparse runs differ from the dense one in a single line,
``controller.step()``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from experiments.devices import moved
from experiments.runs import Run, RunStore
from transposable import MaskController


@dataclass(frozen=True)
class Rate:
    """Linear from 0 to ``peak`` over a share of the steps, then half a cosine to 0."""

    peak: float
    warm_up: float

    def at(self, step: int, steps: int) -> float:
        done = (step + 0.5) / steps
        if done < self.warm_up:
            return self.peak * done / self.warm_up
        return (
            self.peak * 0.5 * (1 + math.cos(math.pi * (done - self.warm_up) / (1 - self.warm_up)))
        )


@dataclass
class Task:
    """What is trained: ``batches(generator)`` is one epoch, ``loss(net, batch)`` a scalar."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    rate: Rate
    epochs: int
    steps_per_epoch: int
    batches: Callable[[torch.Generator], Iterable[Any]]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    controller: MaskController | None = None
    clip: float | None = None
    device: str = "cpu"
    autocast: bool = True


@dataclass
class Progress:
    """What a run has done so far."""

    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def fit(task: Task, run: Run, store: RunStore) -> Progress:
    """Train to the end, from the last checkpoint if there is one; mean training loss by epoch."""
    progress = _resume(task, store.checkpoint(run))
    steps = task.epochs * task.steps_per_epoch
    while progress.epoch < task.epochs:
        # Every epoch draws from its own seed, so that a resumed run sees what it would have seen.
        seed = 1000 * run.seed + progress.epoch
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        started = time.perf_counter()
        total, count = 0.0, 0
        task.net.train()
        for batch in task.batches(generator):
            for group in task.optimizer.param_groups:
                group["lr"] = task.rate.at(progress.epoch * task.steps_per_epoch + count, steps)
            kind = torch.device(task.device).type
            with torch.autocast(kind, torch.bfloat16, enabled=task.autocast):
                loss = task.loss(task.net, moved(batch, task.device))
            loss.backward()
            if task.clip is not None:
                nn.utils.clip_grad_norm_(task.net.parameters(), task.clip)
            task.optimizer.step()
            if task.controller is not None:
                task.controller.step()
            task.optimizer.zero_grad()
            total, count = total + loss.item(), count + 1
        if count != task.steps_per_epoch:
            raise RuntimeError(f"fit: {count} batches instead of {task.steps_per_epoch}")
        progress.seconds += time.perf_counter() - started
        progress.losses.append(total / count)
        progress.epoch += 1
        store.keep(run, _state(task, progress))
        print(
            f"{run.config:<34} seed {run.seed}  epoch {progress.epoch:>2}/{task.epochs}  "
            f"loss {progress.losses[-1]:.4f}  {progress.seconds:.0f} s",
            flush=True,
        )
    return progress


def _state(task: Task, progress: Progress) -> dict[str, Any]:
    return {
        "net": task.net.state_dict(),
        "optimizer": task.optimizer.state_dict(),
        "controller": None if task.controller is None else task.controller.state_dict(),
        "progress": vars(progress),
    }


def _resume(task: Task, state: dict[str, Any] | None) -> Progress:
    if state is None:
        return Progress()
    task.net.load_state_dict(state["net"])
    task.optimizer.load_state_dict(state["optimizer"])
    if task.controller is not None:
        task.controller.load_state_dict(state["controller"])
    return Progress(**state["progress"])
