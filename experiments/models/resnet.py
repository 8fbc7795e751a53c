"""The CIFAR ResNets of He et al. 2016 (section 4.2), with parameter-free shortcuts ("option A").

State-dict keys are those of the public checkpoints: conv1, bn1, layer1.0.conv1, ..., linear.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.added:
            # Every second pixel, and as many zero channels before as after the existing ones.
            side = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, side))
        return F.relu(x + y)


class ResNet(nn.Module):
    """ResNet for 32x32 images: 6 n + 2 layers, three stages of n blocks (16, 32, 64 channels).

    With another ``width`` the stages have 1, 2 and 4 times as many channels.
    """

    def __init__(self, depth: int, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"ResNet: received depth {depth}; it must be 6 n + 2, for example 20")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def load_resnet(file: Path, depth: int) -> ResNet:
    """A ResNet in evaluation mode with the weights of a safetensors file.

    Raises:
        RuntimeError: if the file's keys or shapes are not those of this depth.
    """
    net = ResNet(depth)
    result = net.load_state_dict(load_file(file), strict=False)
    missing = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        raise RuntimeError(
            f"load_resnet: {file} does not hold a ResNet-{depth}: missing {missing}, unexpected "
            f"{result.unexpected_keys}"
        )
    return net.eval()
