"""Train a small ResNet under a transposable mask that follows the weights, with SR-STE.

    python examples/train_cifar10.py [TRAIN.npz TEST.npz [EPOCHS]]

The files hold `images` uint8 [n, 32, 32, 3] and `labels`, for example CIFAR-10. Without files it
makes images up, so that it runs anywhere in seconds; `experiments/dynamic_cifar10` is the same
training at full size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from transposable import MaskController, densify, sparsify, verify

Images = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """Two convolutions with batch norm, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class Net(nn.Module):
    """A strided convolution, residual blocks, a classifier."""

    def __init__(self, channels: int = 32, blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def read(file: Path) -> Images:
    with np.load(file) as data:
        pixels, labels = data["images"], data["labels"]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    return images, torch.from_numpy(labels.astype(np.int64))


def made_up(count: int, seed: int) -> Images:
    """Ten coarse colour patterns, one for each class, under noise."""
    coarse = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    patterns = F.interpolate(coarse, size=32)
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=draw)
    return patterns[labels] + 2 * torch.randn(count, 3, 32, 32, generator=draw), labels


def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    net.eval()
    with torch.inference_mode():
        found = torch.cat([net(part).argmax(1) for part in images.split(500)])
    return 100 * (found == labels).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    if len(sys.argv) > 2:
        train, test = read(Path(sys.argv[1])), read(Path(sys.argv[2]))
    else:
        print("no files given: training on made-up images, the accuracy means nothing")
        train, test = made_up(640, seed=1), made_up(200, seed=2)
    epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    net = Net()
    opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(train[0]) // 64)
    rate = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=steps)

    sparsify(net, "4:8T", exclude=("stem", "head"))
    ctl = MaskController(net, recipe="sr-ste", refresh=1)

    for epoch in range(1, epochs + 1):
        net.train()
        for chosen in torch.randperm(len(train[0])).split(64):
            loss = F.cross_entropy(net(train[0][chosen]), train[1][chosen])
            loss.backward()
            opt.step()
            ctl.step()
            opt.zero_grad()
            rate.step()
        last = ctl.history[-1]
        print(f"epoch {epoch}  loss {loss.item():.3f}  flips {last.flip_rate:.4f}")
    for layer in densify(net):
        assert verify(net.get_submodule(layer.name).weight, "4:8T", layout="conv")
    print(f"top-1 {accuracy(net, *test):.1f} % with every convolution of the blocks 4:8T")


if __name__ == "__main__":
    main()
