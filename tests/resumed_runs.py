"""What a run in another package's training loop must be after a stop: the one without a stop."""

from __future__ import annotations

from typing import Any

import torch

from transposable import MaskController
from transposable.train import SRSTE, DenseStart, DenseTail, Recipe, Static

RECIPES: list[str | Recipe] = [
    "static",
    "sr-ste",
    "masked-decay",
    "s-ste",
    DenseTail(SRSTE(), at=3),
    DenseTail(SRSTE(), at=6),
    DenseStart(Static(), at=6),
]


def same(one: Any, other: Any) -> bool:
    """Bit for bit, also inside an optimizer's state."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_resumed(one: Any, other: Any, steps: int) -> None:
    """Two runs (model, optimizer, controller) have ended alike, after this many steps."""
    for mine, theirs in zip(one[:2], other[:2], strict=True):
        assert same(mine.state_dict(), theirs.state_dict())
    assert one[2].steps == other[2].steps == steps
    assert _history(one[2]) == _history(other[2])


def _history(controller: MaskController) -> list[tuple[Any, ...]]:
    """Without wall times."""
    return [(r.step, r.flip_rate, r.kept, r.gap) for r in controller.history]
