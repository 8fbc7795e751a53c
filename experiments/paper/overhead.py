"""Item: what the mask search costs beside a training step (the paper's table of overheads).

Five ways to find all masks of a network, and a training step of the same network, in float32 on one
core. The library's two solvers are timed on the layers; the others are given tiles, many in one
programme where that is faster, and scaled from a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import harness
from benchmarks.peers.highs_lp import HighsLp
from benchmarks.peers.ortools_flow import OrtoolsFlow
from experiments.classify import DENSE_LAYERS
from experiments.models.resnet import ResNet
from experiments.paper import networks
from experiments.paper.common import Session
from experiments.paper.networks import Weight
from experiments.runs import machine
from transposable import Exact, TwoApprox, find_mask
from transposable.layout import Layout

ITEM: Final = "overhead"
PERIODS: Final = (40, 1)
PUBLISHED: Final = {"integer program": 180, "flow": 70, "2-approximation": 14}
"""Percent of the training time of ResNet-50, masks every 40 steps, as the paper reports."""
SAMPLES: Final = {"integer program": 256, "LP": 1024, "flow": 4096}
"""Tiles of 4:8T in a timed round; 2:4T: the same."""
TILES_PER_PROGRAMME: Final = 32
PATTERNS: Final = ((4, 8), (2, 4))


@dataclass(frozen=True)
class Case:
    """A network that is trained, with its batch."""

    name: str
    depth: int
    width: int
    batch: int


CASES: Final = (
    Case("ResNet-20, batch 128", 20, 16, 128),
    Case("ResNet-20, four times as wide, batch 32", 20, 64, 32),
)


def run(
    session: Session, cases: tuple[Case, ...] = CASES, rounds: int = 5, samples: Any = None
) -> None:
    torch.set_num_threads(1)
    found = []
    for case in cases:
        torch.manual_seed(0)
        net = ResNet(case.depth, width=case.width)
        step = time_step(net, case.batch, rounds)
        weights = layers(net)
        entry: dict[str, Any] = {
            "case": case.name,
            "parameters": sum(p.numel() for p in net.parameters()),
            "sparse_weights": sum(w.tensor.numel() for w in weights),
            "layers": len(weights),
            "step_s": step,
            "patterns": {},
        }
        for n, m in PATTERNS:
            searched = time_search(weights, n, m, rounds, samples or SAMPLES)
            entry["patterns"][f"{n}:{m}T"] = searched
            for name, one in searched.items():
                share = 100 * one["seconds"] / (PERIODS[0] * step)
                print(f"{case.name} {n}:{m}T {name:<16} {share:.4g} % at 40", flush=True)
        found.append(entry)
    session.save(ITEM, {"cases": found, "machine": machine()})


def layers(net: ResNet) -> list[Weight]:
    """The convolutions that are made sparse everywhere: all but the first."""
    return [
        Weight(name, module.weight.detach(), Layout("conv"))
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Conv2d) and name not in DENSE_LAYERS
    ]


def time_step(net: ResNet, batch: int, rounds: int) -> float:
    """Seconds of a dense training step on random images: forward, backward, SGD."""
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    net.train()

    def step() -> None:
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    series = harness.interleave([harness.Contender("step", harness.timed(step))], rounds)
    net.eval()
    return series["step"].median()


def time_search(
    weights: list[Weight], n: int, m: int, rounds: int, samples: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """Seconds to find all masks of the layers, by each method; the samples are checked first.

    Raises:
        RuntimeError: if a method that claims the optimum does not prune as little as the others.
    """
    every = torch.cat([networks.tiles(weight.matrices, m).abs() for weight in weights])
    contenders, scale = [], {}
    for name, solver in {"2-approximation": TwoApprox(), "exact": Exact()}.items():

        def search(solver: Any = solver) -> None:
            for weight in weights:
                find_mask(
                    weight.tensor, f"{n}:{m}T", solver=solver, layout=weight.layout, threads=1
                )

        contenders.append(harness.Contender(name, harness.timed(search)))
        scale[name] = 1.0
    methods: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "integer program": lambda tiles: integer_program(tiles, n),
        "LP": lambda tiles: HighsLp().run(tiles, n, m),
        "flow": lambda tiles: OrtoolsFlow().run(tiles, n, m),
    }
    for name, method in methods.items():
        count = min(samples[name], len(every))
        part = every[:: len(every) // count][:count].contiguous()
        gate(name, part, method(part), n)
        call = harness.timed(lambda method=method, part=part: method(part))
        contenders.append(harness.Contender(name, call))
        scale[name] = len(every) / count
    series = harness.interleave(contenders, rounds)
    return {
        name: {
            "seconds": scale[name] * one.median(),
            "scaled_by": scale[name],
            "us_per_tile": 1e6 * scale[name] * one.median() / len(every),
        }
        for name, one in series.items()
    }


def gate(name: str, tiles: torch.Tensor, kept: torch.Tensor, n: int) -> None:
    """Every line keeps N, and each tile as much as the exact solver's to 1e-6."""
    m = tiles.shape[-1]
    ours = find_mask(networks.stacked(tiles), f"{n}:{m}T", solver=Exact()).tensor
    best, found = ((tiles.double() * k.reshape(tiles.shape)).sum((1, 2)) for k in (ours, kept))
    full = bool((kept.sum(1) == n).all() and (kept.sum(2) == n).all())
    if not full or not torch.allclose(best, found, rtol=1e-6, atol=0):
        raise RuntimeError(f"overhead: the masks of {name} are not those of the exact solver")


def integer_program(tiles: torch.Tensor, n: int) -> torch.Tensor:
    """max <a, S> with S in {0, 1} and line sums N, by HiGHS' branch and bound through scipy."""
    from scipy import optimize, sparse

    m = tiles.shape[-1]
    flat = tiles.double().reshape(len(tiles), -1).numpy()
    # Scaled to a largest entry of 1: HiGHS' tolerances are absolute, its default gap relative.
    flat = flat / np.maximum(flat.max(1, keepdims=True), 1e-300)
    identity, ones = sparse.identity(m, format="csr"), np.ones((1, m))
    lines = sparse.vstack([sparse.kron(identity, ones), sparse.kron(ones, identity)])
    kept = np.empty(flat.shape, np.bool_)
    for start in range(0, len(flat), TILES_PER_PROGRAMME):
        part = flat[start : start + TILES_PER_PROGRAMME]
        rows = sparse.block_diag([lines] * len(part), format="csr")
        result = optimize.milp(
            -part.ravel(),
            integrality=np.ones(part.size),
            bounds=optimize.Bounds(0, 1),
            constraints=optimize.LinearConstraint(rows, n, n),
            options={"mip_rel_gap": 0.0},
        )
        if not result.success:
            raise RuntimeError(f"integer program: tiles from {start}: {result.message}")
        kept[start : start + len(part)] = result.x.reshape(part.shape) > 0.5
    return torch.from_numpy(kept.reshape(tiles.shape))


def share(seconds: float, step_s: float, period: int) -> float:
    """Percent that a search every ``period`` steps adds to the training time."""
    return 100 * seconds / (period * step_s)
