"""Pruning runs that kill themselves: python -m prune.killed FOLDER MODE AFTER [MODE AFTER ...].

Each is a fork of one process that has imported everything, and prunes into FOLDER/MODE-AFTER.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
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


def main(folder: Path, cases: list[tuple[str, int]]) -> None:
    torch.set_num_threads(1)  # no other thread is there to be lost in a fork
    for mode, after in cases:
        name = f"{mode}-{after}"
        child = os.fork()
        if not child:
            try:
                made = model()
                run(made, str(folder / name), mode, after)
                torch.save(made.state_dict(), folder / f"{name}.pt")
            except BaseException:
                traceback.print_exc()
            os._exit(0)  # without what the parent does at its end
        sys.stdout.write(f"{name} {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")


if __name__ == "__main__":
    words = sys.argv[2:]
    main(Path(sys.argv[1]), list(zip(words[::2], map(int, words[1::2]), strict=True)))
