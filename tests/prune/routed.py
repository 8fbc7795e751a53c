"""A network with experts: which tokens reach them depends on the layers before."""

from __future__ import annotations

import torch
from torch import nn


class Experts(nn.Module):
    """The best expert of each token, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            if bool(mine.any()):
                out[mine] = expert(x[mine]) * weight[mine, None]
        return x + out


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.blocks = nn.Sequential(Experts(), Experts())
        self.last = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.blocks(self.first(x)))
        return y


def batches() -> list[torch.Tensor]:
    return list(torch.randn(320, 16, generator=torch.manual_seed(1)).split(40))
