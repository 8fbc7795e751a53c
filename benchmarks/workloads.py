"""Networks whose training step the refresh of the masks is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from examples.pretrain_gpt import GPT, Block
from experiments.models.resnet import ResNet


@dataclass(frozen=True, slots=True)
class Workload:
    """A network, one batch of random data, and how the experiments train it.

    Attributes:
        make: a new network with random weights.
        loss: the loss of a network on the batch.
        optimizer: a new optimizer for a network.
        include: names of the modules that become sparse.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module], torch.Tensor]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    include: tuple[str, ...]


def _resnet(quick: bool) -> Workload:
    depth, batch = (8, 4) if quick else (20, 128)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    return Workload(
        "resnet",
        f"ResNet-{depth}, batch {batch}",
        lambda: ResNet(depth),
        lambda net: F.cross_entropy(net(images), labels),
        lambda net: torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4),
        ("layer*",),
    )


def _gpt(quick: bool) -> Workload:
    width, depth, heads, context, batch = (32, 1, 2, 16, 2) if quick else (384, 5, 6, 256, 16)
    vocabulary = 64 if quick else 4096
    windows = torch.randint(vocabulary, (batch, context + 1))
    return Workload(
        "gpt",
        f"GPT of {depth} blocks, width {width}, {batch * context:,} tokens",
        lambda: GPT(vocabulary, context, width, depth, heads),
        lambda net: net.loss(windows),  # type: ignore[no-any-return, operator]
        _adamw,
        ("blocks.*",),
    )


def _block(quick: bool) -> Workload:
    width, heads, context, batch = (32, 2, 16, 2) if quick else (1024, 16, 1024, 4)
    # Inside a network a block hands a gradient to the one before it.
    tokens = torch.randn(batch, context, width, requires_grad=True)
    return Workload(
        "block",
        f"transformer block, width {width}, {batch * context:,} tokens",
        lambda: nn.Sequential(Block(width, heads)),
        lambda net: net(tokens).float().square().mean(),
        _adamw,
        ("*",),
    )


def _adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.1, fused=True)


_MAKERS: Final[dict[str, Callable[[bool], Workload]]] = {
    "resnet": _resnet,
    "gpt": _gpt,
    "block": _block,
}
NAMES: Final = tuple(_MAKERS)


def make_workload(name: str, *, quick: bool, seed: int) -> Workload:
    """A workload by name; ``quick`` makes it tiny, to see that it runs."""
    torch.manual_seed(seed)
    return _MAKERS[name](quick)


def describe(workload: Workload, net: nn.Module, layers: dict[str, Any]) -> dict[str, Any]:
    """What is measured, for the results file."""
    return {
        "title": workload.title,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "sparse_layers": len(layers),
        "sparse_weights": sum(layer.weight.numel() for layer in layers.values()),
    }
