"""One training step, dense or under masks, with its parts timed apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.harness import Sample
from benchmarks.workloads import Workload
from transposable import MaskController, sparsify
from transposable.nn import SparseLayer
from transposable.solvers import make_solver
from transposable.train import SRSTE, Every, Never

APPROXIMATION = "two_approx"
ENDINGS = ("none", "exact", APPROXIMATION)


@dataclass(slots=True)
class Parts:
    """Times of the parts of one step: pass, gradient term, optimizer, controller, all of it."""

    samples: dict[str, Sample] = field(default_factory=dict)

    def run(self, name: str, call: Callable[[], object]) -> None:
        """Call and note the time under a name."""
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        self.samples[name] = Sample(time.perf_counter() - wall, time.process_time() - cpu)

    def close(self) -> dict[str, Sample]:
        """All parts and their sum, "step"."""
        taken = list(self.samples.values())
        whole = Sample(sum(s.wall for s in taken), sum(s.cpu for s in taken))
        return {**self.samples, "step": whole}


class Trainer:
    """A network in training under bfloat16 autocast: a refresh weighs most beside a fast step."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.net = workload.make().train()
        self.optimizer = workload.optimizer(self.net)

    def _pass(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.workload.loss(self.net)
        loss.backward()

    def dense_step(self) -> dict[str, Sample]:
        """One step without masks."""
        parts = Parts()
        parts.run("pass", self._pass)
        parts.run("optimizer", self.optimizer.step)
        parts.run("zero", self.optimizer.zero_grad)
        return parts.close()


class SparseTrainer(Trainer):
    """The same under masks; each step says what its controller does at its end.

    The gradient term is added by hand, as for an optimizer that is not torch's: so that it is timed
    apart.
    """

    def __init__(self, workload: Workload, pattern: str) -> None:
        super().__init__(workload)
        sparsify(self.net, pattern, include=workload.include)
        self.controller = MaskController(self.net, SRSTE())

    @property
    def layers(self) -> dict[str, SparseLayer]:
        """The sparse layers by name."""
        return self.controller.layers

    def set_up(self, ending: str) -> None:
        """Let the controller refresh with a solver after every step, or never ("none")."""
        self.controller.schedule = Never() if ending == "none" else Every(1)
        if ending != "none":
            self.controller.solver = make_solver(ending)

    def sparse_step(self, ending: str) -> dict[str, Sample]:
        """One step that ends as one of ENDINGS."""
        parts, ctl = Parts(), self.controller
        self.set_up(ending)
        parts.run("pass", self._pass)
        parts.run("term", ctl.before_step)
        parts.run("optimizer", self.optimizer.step)
        parts.run("controller", ctl.step)
        parts.run("zero", self.optimizer.zero_grad)
        samples = parts.close()
        if ending != "none":
            # Without the best masks that the gap of an approximation is measured against.
            seconds = ctl.history[-1].seconds
            samples["masks"] = Sample(seconds, seconds)
        return samples
