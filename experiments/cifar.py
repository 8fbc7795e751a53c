"""CIFAR-10 from JPEG files: decoded once, cropped and flipped batch by batch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from experiments.devices import device_of

BORDER = 4
MEAN = torch.tensor([0.485, 0.456, 0.406])
DEVIATION = torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Images:
    """Pixels uint8 [n, height, width, 3] and labels int64 [n]."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Images:
        return Images(self.pixels[start:stop], self.labels[start:stop])


def load_train(data: Path) -> Images:
    """The 50,000 training images, decoded from JPEG."""
    from PIL import Image

    with np.load(data / "cifar10" / "train_jpeg.npz") as members:
        stream, offsets, labels = members["data"], members["offsets"], members["labels"]
    pixels = np.empty((len(labels), 32, 32, 3), np.uint8)
    for index in range(len(labels)):
        file = io.BytesIO(stream[offsets[index] : offsets[index + 1]].tobytes())
        pixels[index] = np.asarray(Image.open(file))
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def load_test(data: Path) -> Images:
    """The 5,000 test images."""
    with np.load(data / "cifar10" / "test.npz") as members:
        pixels, labels = members["images"], members["labels"]
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] in channels-last memory."""
    return ((pixels / 255 - MEAN) / DEVIATION).permute(0, 3, 1, 2)


def with_border(pixels: torch.Tensor) -> torch.Tensor:
    """Four black pixels on every side."""
    return torch.nn.functional.pad(pixels, (0, 0, BORDER, BORDER, BORDER, BORDER))


def crop_and_flip(bordered: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random crop of every image, without its border's size, every second one mirrored."""
    count, height, width = bordered.shape[0], *(s - 2 * BORDER for s in bordered.shape[1:3])
    top, left = torch.randint(2 * BORDER + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.arange(width)
    rows = top + torch.arange(height)
    columns = left + torch.where(mirrored, columns.flip(0), columns)
    return bordered[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def batches(
    bordered: Images, size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch in random order, augmented and normalised; the last batch may be smaller."""
    order = torch.randperm(len(bordered), generator=generator)
    for chosen in order.split(size):
        pixels = crop_and_flip(bordered.pixels[chosen], generator)
        yield normalised(pixels), bordered.labels[chosen]


def plain(bordered: Images, size: int = 250) -> list[torch.Tensor]:
    """Images without their border and not augmented, normalised, in batches."""
    inner = bordered.pixels[:, BORDER:-BORDER, BORDER:-BORDER]
    return list(normalised(inner).split(size))


def right(net: torch.nn.Module, images: Images, size: int = 500) -> torch.Tensor:
    """Whether the largest output is the label, bool [n], image by image, in float32."""
    net.eval()
    found, device = [], device_of(net)
    with torch.inference_mode():
        for start in range(0, len(images), size):
            part = images.part(start, start + size)
            guessed = net(normalised(part.pixels).to(device)).argmax(1).cpu()
            found.append(guessed == part.labels)
    return torch.cat(found)


def top1(net: torch.nn.Module, images: Images, size: int = 500) -> float:
    """Percentage of images whose largest output is the label, in float32."""
    return 100 * int(right(net, images, size).sum()) / len(images)
