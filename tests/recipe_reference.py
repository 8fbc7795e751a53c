"""Sparse training written down once more, in plain formulas: no sparse layer, no controller.

A network of two weights, y = tanh(x A^T) B^T, whose gradient is derived by hand; masks by trying
all of them; optimizers by their textbook update. Everything in float64, so that a test can ask for
equality up to rounding.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch

Masks = Callable[[torch.Tensor], torch.Tensor]


def row_mask(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """The n largest magnitudes of each m consecutive entries of a row, one group after another."""
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for row, start in itertools.product(range(weight.shape[0]), range(0, weight.shape[1], m)):
        group = weight[row, start : start + m].abs().tolist()
        order = sorted(range(len(group)), key=lambda i: -group[i])
        for i in order[:n]:
            mask[row, start + i] = True
    return mask


def tile_mask(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """The best transposable mask of every m x m tile, by trying all choices of rows."""
    every = _all_tiles(n, m)
    best = torch.zeros_like(weight, dtype=torch.bool)
    for i, j in itertools.product(range(0, weight.shape[0], m), range(0, weight.shape[1], m)):
        tile = weight[i : i + m, j : j + m].abs()
        kept = (every * tile).sum((1, 2))
        best[i : i + m, j : j + m] = every[kept.argmax()]
    return best


@functools.cache
def _all_tiles(n: int, m: int) -> torch.Tensor:
    rows = [set(chosen) for chosen in itertools.combinations(range(m), n)]
    masks = []
    for choice in itertools.product(rows, repeat=m):
        if all(sum(j in row for row in choice) == n for j in range(m)):
            masks.append([[j in row for j in range(m)] for row in choice])
    return torch.tensor(masks)


def shrunk(weight: torch.Tensor, mask: torch.Tensor, m: int) -> torch.Tensor:
    """S-STE without its scale: sign(w) max(|w| - t, 0), t the largest pruned |w| of the group."""
    result = torch.zeros_like(weight)
    for row, start in itertools.product(range(weight.shape[0]), range(0, weight.shape[1], m)):
        columns = range(start, min(start + m, weight.shape[1]))
        pruned = [abs(weight[row, j].item()) for j in columns if not mask[row, j]]
        threshold = max(pruned, default=0.0)
        for j in columns:
            if mask[row, j]:
                value = weight[row, j].item()
                size = max(abs(value) - threshold, 0.0)
                result[row, j] = size if value > 0 else -size
    return result


@dataclass
class Sgd:
    """v <- mu v + (g + d w);  w <- w - lr v, or lr (g + d w + mu v) with Nesterov's."""

    lr: float
    momentum: float = 0.0
    decay: float = 0.0
    nesterov: bool = False
    velocity: dict[str, torch.Tensor] = field(default_factory=dict)

    def step(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient + self.decay * weight
        before = self.velocity.get(name)
        velocity = gradient if before is None else self.momentum * before + gradient
        self.velocity[name] = velocity
        direction = gradient + self.momentum * velocity if self.nesterov else velocity
        return weight - self.lr * direction


@dataclass
class AdamW:
    """w <- w - lr d w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.0
    eps: float = 1e-8
    state: dict[str, tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def step(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros_like(weight)
        t, first, second = self.state.get(name, (0, zero, zero))
        b1, b2 = self.betas
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient**2
        t += 1
        self.state[name] = (t, first, second)
        direction = (first / (1 - b1**t)) / ((second / (1 - b2**t)).sqrt() + self.eps)
        return weight - self.lr * self.decay * weight - self.lr * direction


@dataclass
class Training:
    """One run of a recipe: what its publication says, line by line.

    Args:
        weights: A [hidden, in] and B [out, hidden].
        masks: the best mask of a weight.
        optimizer: its update.
        refreshed_after: the steps, counted from 1, after which masks are found anew.
        kind: "static", "ste", "decay" (SR-STE and masked decay) or "soft" (S-STE).
        decay: lambda.
        m: length of a group, for "soft".
        sparse_steps: the steps, counted from 0, whose forward pass is masked; None: all.
        clip: gradients are scaled to this norm at most, before the recipe's term.
    """

    weights: dict[str, torch.Tensor]
    masks: Masks
    optimizer: Sgd | AdamW
    refreshed_after: Collection[int]
    kind: str
    decay: float = 0.0
    m: int = 4
    sparse_steps: Collection[int] | None = None
    clip: float | None = None
    mask: dict[str, torch.Tensor] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    done: int = 0

    def __post_init__(self) -> None:
        self.mask = {name: self.masks(weight) for name, weight in self.weights.items()}
        if self._sparse(0):
            self._wake()

    def step(self, x: torch.Tensor, target: torch.Tensor) -> None:
        sparse = self._sparse(self.done)
        effective = {name: self._effective(name, sparse) for name in self.weights}
        gradients = by_hand(effective["A"], effective["B"], x, target)
        if sparse and self.kind == "static":
            gradients = {name: self.mask[name] * g for name, g in gradients.items()}
        if self.clip is not None:
            norm = sum(g.square().sum() for g in gradients.values()).sqrt()
            factor = min(1.0, self.clip / (norm.item() + 1e-6))
            gradients = {name: factor * g for name, g in gradients.items()}
        if sparse and self.kind == "decay":
            gradients = {
                name: g + self.decay * (~self.mask[name] * self.weights[name])
                for name, g in gradients.items()
            }
        for name, gradient in gradients.items():
            self.weights[name] = self.optimizer.step(name, self.weights[name], gradient)
        was_sparse, self.done = sparse, self.done + 1
        if was_sparse and self.kind == "static":
            self._zero()
        if not self._sparse(self.done):
            return
        if self.done in self.refreshed_after or not was_sparse:
            self.mask = {name: self.masks(weight) for name, weight in self.weights.items()}
        if not was_sparse:
            self._wake()
        if self.kind == "static":
            self._zero()

    def _sparse(self, step: int) -> bool:
        return self.sparse_steps is None or step in self.sparse_steps

    def _wake(self) -> None:
        if self.kind == "static":
            self._zero()
        if self.kind == "soft" and not self.scale:
            for name, weight in self.weights.items():
                soft = shrunk(weight, self.mask[name], self.m)
                scale = (weight * soft).sum() / (soft * soft).sum()
                self.scale[name] = scale.float().item()  # as it is stored

    def _zero(self) -> None:
        self.weights = {name: self.mask[name] * weight for name, weight in self.weights.items()}

    def _effective(self, name: str, sparse: bool) -> torch.Tensor:
        weight = self.weights[name]
        if not sparse:
            return weight
        if self.kind == "soft":
            return self.scale[name] * shrunk(weight, self.mask[name], self.m)
        return self.mask[name] * weight


def loss_of(
    a: torch.Tensor, b: torch.Tensor, x: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """mean over the batch of |tanh(x A^T) B^T - target|^2."""
    return (torch.tanh(x @ a.T) @ b.T - target).square().sum(1).mean()


def by_hand(
    a: torch.Tensor, b: torch.Tensor, x: torch.Tensor, target: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The gradients of :func:`loss_of` by the chain rule."""
    hidden = torch.tanh(x @ a.T)
    error = 2 * (hidden @ b.T - target) / len(x)
    return {"A": ((error @ b) * (1 - hidden**2)).T @ x, "B": error.T @ hidden}
