"""CIFAR-10 from JPEG bytes: decoding, crops, flips, order."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from experiments import cifar, classify


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve one-coloured training images as JPEG, eight test images."""
    files = []
    for index in range(12):
        stream = io.BytesIO()
        Image.new("RGB", (32, 32), (20 * index, 10, 200)).save(stream, "JPEG", quality=95)
        files.append(stream.getvalue())
    folder = tmp_path / "cifar10"
    folder.mkdir()
    np.savez(
        folder / "train_jpeg.npz",
        data=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.arange(12, dtype=np.uint8) % 10,
    )
    images = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    np.savez(folder / "test.npz", images=images, labels=np.arange(8, dtype=np.uint8))
    return tmp_path


def test_training_images_are_decoded(data: Path) -> None:
    images = cifar.load_train(data)
    assert images.pixels.shape == (12, 32, 32, 3)
    assert images.labels.tolist() == [*range(10), 0, 1]
    red = images.pixels[:, :, :, 0].float().mean((1, 2))
    assert torch.allclose(red, 20.0 * torch.arange(12), atol=3)


def test_crops_are_parts_of_the_bordered_image_and_half_are_mirrored() -> None:
    pixels = torch.randint(0, 256, (200, 32, 32, 3), dtype=torch.uint8)
    bordered = cifar.with_border(pixels)
    assert bordered.shape == (200, 40, 40, 3)
    assert torch.equal(bordered[:, 4:36, 4:36], pixels)
    assert bordered.sum(dtype=torch.long) == pixels.sum(dtype=torch.long)
    crops = cifar.crop_and_flip(bordered, torch.Generator().manual_seed(0))
    mirrored, corners = 0, set()
    for crop, source in zip(crops, bordered, strict=True):
        places = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if torch.equal(crop.flip(1) if flip else crop, source[top : top + 32, left : left + 32])
        ]
        assert len(places) == 1
        mirrored += places[0][2]
        corners.add(places[0][:2])
    assert 70 < mirrored < 130
    assert {c[0] for c in corners} == {c[1] for c in corners} == set(range(9))


def test_an_epoch_holds_every_image_once_and_follows_its_seed(data: Path) -> None:
    images = cifar.load_train(data)
    bordered = cifar.Images(cifar.with_border(images.pixels), torch.arange(12))

    def epoch(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(cifar.batches(bordered, 5, torch.Generator().manual_seed(seed)))

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert [len(labels) for _, labels in first] == [5, 5, 2]
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == list(range(12))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert not torch.equal(first[0][1], other[0][1])
    assert first[0][0].shape == (5, 3, 32, 32)
    assert first[0][0].is_contiguous(memory_format=torch.channels_last)


def test_normalised_as_the_public_checkpoints_expect() -> None:
    pixels = torch.tensor([[[[255, 0, 128]]]], dtype=torch.uint8)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    assert torch.allclose(cifar.normalised(pixels).flatten(), torch.tensor(expected))


def test_top1_counts_hits(data: Path) -> None:
    class Always3(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(torch.full((len(x),), 3), 10)

    assert cifar.top1(Always3(), cifar.load_test(data), size=3) == 12.5


def test_tuning_never_sees_a_test_image(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "HELD_OUT", 4)
    (data / "cifar10" / "test.npz").unlink()
    split = classify.load_split(data, held_out=True)
    assert (len(split.train), len(split.measured)) == (8, 4)
    assert torch.equal(split.measured.pixels, cifar.load_train(data).pixels[8:])
