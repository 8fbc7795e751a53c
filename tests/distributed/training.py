"""One small network, trained by one process or by several: the same data, the same steps."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers.pytorch_utils import Conv1D

from transposable import MaskController, sparsify
from transposable.train import (
    SRSTE,
    SSTE,
    STE,
    DenseStart,
    DenseTail,
    MaskedDecay,
    Recipe,
    Refresh,
    Static,
)

RECIPES: dict[str, Recipe] = {
    "static": Static(),
    "ste": STE(),
    "sr-ste": SRSTE(decay=0.1),
    "masked-decay": MaskedDecay(decay=0.1),
    "s-ste": SSTE(),
    "dense-tail": DenseTail(SRSTE(decay=0.1), at=4),
    "static dense-tail": DenseTail(Static(), at=4),
    "dense-start": DenseStart(SSTE(), at=3),
}
STEPS = 6
BATCH = 8


class Net(nn.Module):
    """A layer of each kind whose weights lie differently: Conv2d, Linear, Conv1D [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(64, 32)
        self.hf = Conv1D(16, 32)
        self.out = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.conv(x)).flatten(1)
        return self.out(torch.tanh(self.hf(torch.tanh(self.fc(hidden)))))


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(seed)
    made = Net().to(dtype)
    with torch.no_grad():
        made.hf.weight.mul_(10)  # of 0.02
    return made


def data(step: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(BATCH, 8, 2, 2, generator=random, dtype=torch.float64)
    y = torch.randn(BATCH, 4, generator=random, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def share(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a batch."""
    size = len(tensor) // dist.get_world_size()
    return tensor[dist.get_rank() * size :][:size]


def shard(model: Net, **options: Any) -> Net:
    """One layer in a group of its own, which reshards after forward, the others in the root's."""
    fully_shard(model.fc, **options)
    fully_shard(model, **options)
    return model


def optimizer_of(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


@dataclass
class Run:
    """What a training run left behind."""

    losses: list[float] = field(default_factory=list)
    masks: list[dict[str, torch.Tensor]] = field(default_factory=list)
    history: list[Refresh] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def must_equal(self, other: Run, tolerance: float = 1e-10) -> None:
        """The masks to the bit, numbers to the rounding of sums taken in another order."""
        torch.testing.assert_close(self.losses, other.losses, rtol=tolerance, atol=tolerance)
        assert len(self.masks) == len(other.masks)
        for mine, theirs in zip(self.masks, other.masks, strict=True):
            for name, mask in mine.items():
                assert torch.equal(mask, theirs[name]), f"masks of {name} differ"
        for mine, theirs in zip(self.history, other.history, strict=True):
            assert mine.step == theirs.step
            assert mine.flip_rate == theirs.flip_rate
            assert abs(mine.kept - theirs.kept) < tolerance
            assert abs(mine.gap - theirs.gap) < tolerance
        assert self.weights.keys() == other.weights.keys()
        for name, weight in self.weights.items():
            torch.testing.assert_close(weight, other.weights[name], rtol=tolerance, atol=tolerance)


def masks_of(ctl: MaskController) -> dict[str, torch.Tensor]:
    return {name: layer.mask.clone() for name, layer in ctl.layers.items()}


def must_agree(ctl: MaskController, *earlier: dict[str, torch.Tensor]) -> None:
    """Masks, and the records but for the time, are the same to the bit on all ranks."""
    records = [(r.step, r.flip_rate, r.kept, r.gap) for r in ctl.history]
    digest = hashlib.sha256()
    for masks in (*earlier, masks_of(ctl)):
        for mask in masks.values():
            digest.update(mask.numpy().tobytes())
    mine = (digest.hexdigest(), records)
    all_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_ranks, mine)
    assert all(theirs == mine for theirs in all_ranks)


def train(
    how: str,
    recipe: str,
    pattern: str,
    *,
    optimizer: str = "sgd",
    solver: str = "auto",
    refresh: int = 1,
    micro: int = 1,
    clip: float | None = None,
    dtype: torch.dtype = torch.float64,
    ddp: dict[str, Any] | None = None,
    fsdp: dict[str, Any] | None = None,
) -> Run:
    """Train by one process ("single"), or with all ranks by "ddp" (two orders) or "fsdp"."""
    model = net(dtype=dtype)
    trained: Any = model
    if how == "ddp, then sparsify":
        trained, how = DistributedDataParallel(model), "ddp"
    sparsify(model, pattern, exclude="out")
    if how == "ddp" and trained is model:
        trained = DistributedDataParallel(model, **(ddp or {}))
    if how == "fsdp":
        shard(model, **(fsdp or {}))
    ctl = MaskController(model, RECIPES[recipe], refresh, solver)
    opt = optimizer_of(model, optimizer)
    run = Run()
    for step in range(STEPS):
        loss = accumulate(how, trained, step, micro, dtype)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        opt.step()
        if ctl.step() is not None:
            run.masks.append(masks_of(ctl))
        opt.zero_grad()
        if how != "single":
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        run.losses.append(float(loss))
    if how != "single":
        must_agree(ctl, *run.masks)
    run.history = ctl.history
    run.weights = {name: whole(parameter) for name, parameter in model.named_parameters()}
    return run


def accumulate(
    how: str, trained: Any, step: int, micro: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Forward and backward in so many parts, gradients exchanged after the last one only."""
    x, y = data(step, dtype)
    if how != "single":
        x, y = share(x), share(y)
    total = torch.zeros((), dtype=dtype)
    parts = list(zip(x.chunk(micro), y.chunk(micro), strict=True))
    for number, (inputs, targets) in enumerate(parts):
        last = number == len(parts) - 1
        if how == "fsdp":
            trained.set_requires_gradient_sync(last)
        with nullcontext() if last or how != "ddp" else trained.no_sync():
            loss = (trained(inputs) - targets).square().mean() / micro
            loss.backward()
        total += loss.detach()
    return total
