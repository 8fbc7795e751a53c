"""A pruning run that kills itself: python -m prune.killed FOLDER OUTPUT AFTER."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from transposable.prune import PruneReport, prune_model


class Attention(nn.Module):
    """Layers with one input, a residual, a layer without bias, one in the layout [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.tanh(self.q(x)) * torch.sigmoid(self.k(x)) + self.v(x)
        return self.norm(self.out(mixed)) + x


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(8, 16), Attention(), Attention(), nn.Linear(16, 8))
    made[2].q.weight = made[1].q.weight  # tied over blocks
    return made


def data(seed: int = 1) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(24, 8, generator=random) for _ in range(3)]


class Killer:
    """Called after every layer; kills the process after some."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, share: float, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def run(made: nn.Module, folder: str | None, mode: str, after: int) -> PruneReport:
    return prune_model(
        made, "2:4T", calibration=data(), mode=mode, resume=folder, progress=Killer(after)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = model()
    run(made, sys.argv[1], sys.argv[3], int(sys.argv[4]))
    torch.save(made.state_dict(), Path(sys.argv[2]))
