"""The trained networks whose weights are looked at, and their weights as tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from experiments.adaprune.tasks import tasks
from experiments.classify import DENSE_LAYERS
from experiments.paper.common import Session
from transposable.layout import Layout

ENCODER: Final = "MiniLM"
LAYERS: Final = {
    "resnet20_jpeg": ("layer*",),
    "resnet20": ("layer*",),
    "resnet32": ("layer*",),
    ENCODER: ("encoder.layer.*",),
}
"""The layers that the other experiments prune, by network."""
NEEDED: Final = [f"models/{name}.safetensors" for name in LAYERS if name != ENCODER]


@dataclass(frozen=True)
class Weight:
    """One layer's weight and how it is read."""

    name: str
    tensor: torch.Tensor
    layout: Layout

    @property
    def matrices(self) -> torch.Tensor:
        return self.layout.matrices(self.tensor)


def load(session: Session, name: str) -> nn.Module:
    """A trained network by name."""
    task = next(task for task in tasks(session.data) if task.name == name)
    return task.load()


def weights(net: nn.Module, name: str) -> Iterator[Weight]:
    """The weights that are pruned elsewhere: all convolutions but the first, all encoder layers."""
    first = LAYERS[name][0].removesuffix("*")
    for path, module in net.named_modules():
        if not path.startswith(first) or path in DENSE_LAYERS:
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            kind: Any = "conv" if isinstance(module, nn.Conv2d) else "linear"
            yield Weight(path, module.weight.detach(), Layout(kind))


def tiles(matrices: torch.Tensor, m: int) -> torch.Tensor:
    """The full tiles of [batch, rows, cols] as [count, m, m], without those that an edge crops.

    Example:
        >>> tiles(torch.arange(32.0).reshape(1, 4, 8), 4)[1, 0].tolist()
        [4.0, 5.0, 6.0, 7.0]
    """
    batch, rows, cols = matrices.shape
    down, across = rows // m, cols // m
    cut = matrices[:, : down * m, : across * m].reshape(batch, down, m, across, m)
    return cut.transpose(2, 3).reshape(-1, m, m)


def stacked(tiles: torch.Tensor) -> torch.Tensor:
    """Tiles [count, m, m] below one another, as the library takes many of them at once."""
    return tiles.reshape(-1, tiles.shape[-1])
