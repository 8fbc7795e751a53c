"""A training step of a transformer block in float32: dense, and under masks by three recipes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import nn

from benchmarks import onednn
from benchmarks.gate import GateError
from benchmarks.harness import Clock, Contender, Series, interleave, ratio, timed
from examples.pretrain_gpt import Block
from transposable import MaskController, sparsify
from transposable.nn import sparse_layers, use_backend
from transposable.nn.backends import DENSE_MASKED, Backend
from transposable.train import SRSTE, Every, Never, Recipe, Static

PERIOD: Final = 40
TOLERANCE: Final = 1e-5
"""Largest error of a gradient as a whole, relative to its length in float64."""


MASKED: Final = "static mask, dense products"
ONEDNN: Final = "dense, oneDNN"


class KeptGradient(Recipe):
    """Masks by magnitude, refreshed; pruned weights get no gradient and stay where they are."""

    name: ClassVar[str] = "kept-gradient"
    summary: ClassVar[str] = "pruned weights stay where they are"

    @property
    def straight_through(self) -> bool:
        return False


RECIPES: Final[dict[str, tuple[Callable[[], Recipe], bool]]] = {
    "static mask": (Static, False),
    f"exact mask every {PERIOD}, gradient of kept weights": (KeptGradient, True),
    f"exact mask every {PERIOD}, SR-STE (dense weight gradient)": (SRSTE, True),
}
"""What is judged: the recipe, and whether its masks are refreshed."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of the block and its batch."""

    width: int = 1024
    heads: int = 16
    batch: int = 8
    length: int = 256

    def __str__(self) -> str:
        return (
            f"width {self.width}, {self.heads} heads, feed-forward {4 * self.width}, "
            f"{self.batch * self.length:,} tokens"
        )


QUICK: Final = Size(128, 2, 2, 32)


def native_backend() -> Backend:
    """The library's back end for compressed weights."""
    from transposable.nn.packed_backend import NMCpu

    return NMCpu()


class Trainer:
    """A block, its optimizer, and one batch that wants its gradient, as inside a network."""

    def __init__(
        self, net: nn.Module, x: torch.Tensor, pattern: str | None, backend: Backend | None
    ) -> None:
        self.net, self.x = copy.deepcopy(net), x.detach().clone().requires_grad_()
        if pattern is not None:
            sparsify(self.net, pattern)
            refused = use_backend(sparse_layers(self.net), backend or DENSE_MASKED)
            if refused:
                raise GateError(f"gate: the back end refuses layers of the block: {refused}")
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), 1e-3, weight_decay=0.1, fused=True
        )
        self.controller: MaskController | None = None

    def under(self, recipe: Recipe) -> None:
        """Train by a recipe, without refreshes until :meth:`refreshing_steps` is called."""
        self.controller = MaskController(self.net, recipe, Never(), "exact")

    def gradients(self) -> dict[str, torch.Tensor]:
        """The loss and all gradients of the batch."""
        loss = self.net(self.x).square().mean()
        loss.backward()
        found = {name: p.grad for name, p in self.net.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), "input": self.x.grad, **found}  # type: ignore[dict-item]

    def step(self) -> None:
        """Forward, backward, optimizer, controller."""
        self.net(self.x).square().mean().backward()
        self.optimizer.step()
        if self.controller is not None:
            self.controller.step()
        self.optimizer.zero_grad()
        self.x.grad = None

    def refreshing_steps(self) -> None:
        """A step that ends with new masks, and the one after it, which has to index them."""
        assert self.controller is not None
        self.controller.schedule = Every(1)
        self.step()
        self.controller.schedule = Never()
        self.step()


def check(
    net: nn.Module, x: torch.Tensor, pattern: str, recipe: Recipe, backend: Backend
) -> dict[str, float]:
    """Loss and gradients of one step against float64 under the same masks.

    Returns:
        The largest relative error of a gradient.

    Raises:
        GateError: naming the gradient.
    """
    ours, exact = Trainer(net, x, pattern, backend), _in_double(net, x, pattern)
    for trainer in (ours, exact):
        trainer.under(recipe)
    expected = exact.gradients()
    worst = compare(f"{pattern}, {recipe.name}", ours.gradients(), expected)
    return {"worst": worst, "compared": len(expected)}


def compare(where: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative error of a tensor.

    Raises:
        GateError: if one is missing, or not equal up to rounding.
    """
    if found.keys() != expected.keys():
        raise GateError(f"gate: {where}: no gradient of {found.keys() ^ expected.keys()}")
    worst = 0.0
    for name, got in found.items():
        error = float((got.double() - expected[name]).norm() / expected[name].norm())
        if not error <= TOLERANCE:  # so that NaN fails too
            raise GateError(
                f"gate: {where}: {name} differs from float64's by {error:.1e} of its length, "
                f"allowed is {TOLERANCE:.0e}"
            )
        worst = max(worst, error)
    return worst


def _in_double(net: nn.Module, x: torch.Tensor, pattern: str | None) -> Trainer:
    """The judge: the mask is found in float32, as ours is; all else is float64."""
    exact = Trainer(net, x, pattern, None)
    exact.net.double()
    exact.x = x.detach().double().requires_grad_()
    return exact


def measure(
    pattern: str, size: Size, rounds: int, seed: int, make: Callable[[], Backend] = native_backend
) -> dict[str, Any]:
    """Interleaved steps of all kinds under one pattern; the results for the JSON file.

    Raises:
        GateError: before anything is timed.
    """
    torch.manual_seed(seed)
    net = Block(size.width, size.heads)
    x = torch.randn(size.batch, size.length, size.width)
    gates = [check(net, x, pattern, recipe(), make()) for recipe, _ in RECIPES.values()]
    dense, masked = Trainer(net, x, None, None), Trainer(net, x, pattern, None)
    masked.under(Static())
    trainers = {}
    for name, (recipe, _) in RECIPES.items():
        trainers[name] = Trainer(net, x, pattern, make())
        trainers[name].under(recipe())
    contenders = [
        Contender("dense", timed(dense.step)),
        Contender(MASKED, timed(masked.step)),
        *_contenders(trainers),
    ]
    if onednn.available():
        fast = Trainer(onednn.through_onednn(net), x, None, None)
        compare("dense, oneDNN", fast.gradients(), _in_double(net, x, None).gradients())
        fast.optimizer.zero_grad()
        contenders.append(Contender(ONEDNN, timed(fast.step)))
    series = interleave(contenders, rounds)
    rows = {name: _row(series, series[name]) for name in (ONEDNN, MASKED) if name in series}
    for name, (_, refreshed) in RECIPES.items():
        steps = series[name]
        row = _row(series, amortised(steps, series[_pair(name)]) if refreshed else steps)
        if refreshed:
            controller = trainers[name].controller
            assert controller is not None
            flips = [record.flip_rate for record in controller.history]
            row |= {
                "step_without_refresh_s": steps.median(),
                "refresh_adds_s": series[_pair(name)].median() - 2 * steps.median(),
                "least_flip_rate": min(flips),
            }
        rows[name] = row
    return {
        "pattern": pattern,
        "size": str(size),
        "rounds": rounds,
        "gate": {
            "worst": max(gate["worst"] for gate in gates),
            "compared": int(sum(gate["compared"] for gate in gates)),
        },
        "dense": series["dense"].summary(),
        "rows": rows,
    }


def amortised(steps: Series, pairs: Series) -> Series:
    """The mean step of a period, round by round: one pair with a refresh, the rest without."""
    mixed = [
        type(step)(
            ((PERIOD - 2) * step.wall + pair.wall) / PERIOD,
            ((PERIOD - 2) * step.cpu + pair.cpu) / PERIOD,
        )
        for step, pair in zip(steps.samples, pairs.samples, strict=True)
    ]
    return Series(mixed)


def _contenders(trainers: dict[str, Trainer]) -> Iterator[Contender]:
    for name, (_, refreshed) in RECIPES.items():
        yield Contender(name, timed(trainers[name].step))
        if refreshed:
            yield Contender(_pair(name), timed(trainers[name].refreshing_steps))


def _pair(name: str) -> str:
    return f"{name}: two steps with a refresh"


def _row(series: dict[str, Series], steps: Series) -> dict[str, Any]:
    clocks: tuple[Clock, ...] = ("wall", "cpu")
    row = {"ratio": {clock: ratio(series["dense"], steps, clock) for clock in clocks}}
    if ONEDNN in series:
        row["onednn"] = {clock: ratio(series[ONEDNN], steps, clock) for clock in clocks}
    return {"time": steps.summary(), **row}
