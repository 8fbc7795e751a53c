"""The networks that are pruned, what calibrates them, and what measures them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from experiments import cifar, stsb
from experiments.finetune_minilm.run import model_folder
from experiments.models.resnet import load_resnet
from experiments.models.stories import load_stories

IMAGES, SENTENCES, TARGETS = 1000, 512, 256


@dataclass(frozen=True)
class Task:
    """One network under one pattern.

    ``load()`` gives the dense network, ``calibration()`` batches, ``measure(net)`` the score.
    """

    name: str
    pattern: str
    score: str
    digits: int
    exclude: tuple[str, ...]
    include: tuple[str, ...] | None
    load: Callable[[], nn.Module]
    calibration: Callable[[], list[Any]]
    measure: Callable[[nn.Module], float]
    needed: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.name} {self.pattern}"


def tasks(data: Path) -> list[Task]:
    """All rows of the experiment; nothing is read yet."""
    return [
        _resnet(data, "resnet20_jpeg", 20, "4:8T"),
        _resnet(data, "resnet20", 20, "2:4T"),
        _resnet(data, "resnet32", 32, "2:4T"),
        _encoder(data, "2:4T"),
        _encoder(data, "4:8T"),
        _stories(data, "2:4T"),
        _stories(data, "4:8T"),
    ]


def _resnet(data: Path, name: str, depth: int, pattern: str) -> Task:
    def calibration() -> list[torch.Tensor]:
        with np.load(data / "cifar10" / "calib.npz") as members:
            pixels = torch.from_numpy(members["images"][:IMAGES])
        return list(cifar.normalised(pixels).split(250))

    return Task(
        name=name,
        pattern=pattern,
        score="top-1, %",
        digits=2,
        exclude=("conv1", "linear"),
        include=None,
        load=lambda: load_resnet(data / "models" / f"{name}.safetensors", depth),
        calibration=calibration,
        measure=lambda net: cifar.top1(net, cifar.load_test(data)),
        needed=("cifar10/calib.npz", "cifar10/test.npz", f"models/{name}.safetensors"),
    )


def _encoder(data: Path, pattern: str) -> Task:
    def pairs(part: str) -> stsb.Pairs:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model_folder())
        return stsb.tokenised(data / "stsb" / f"sts-{part}.csv", tokenizer)

    def load() -> nn.Module:
        from transformers import AutoModel

        net: nn.Module = AutoModel.from_pretrained(model_folder(), dtype=torch.float32)
        return net.eval()

    return Task(
        name="MiniLM",
        pattern=pattern,
        score="100 x Spearman",
        digits=2,
        exclude=(),
        include=("encoder.layer.*",),
        load=load,
        calibration=lambda: stsb.alike(pairs("train"), SENTENCES),
        measure=lambda net: 100 * stsb.spearman(net, pairs("dev")),
        needed=("stsb/sts-train.csv", "stsb/sts-dev.csv"),
    )


def _stories(data: Path, pattern: str) -> Task:
    """Stories with even numbers calibrate, those with odd ones measure."""

    def windows(first: int) -> list[torch.Tensor]:
        with np.load(data / "tinystories" / "stories.npz") as members:
            ids, offsets = torch.from_numpy(members["ids"].astype(np.int64)), members["offsets"]
        stories = [ids[offsets[i] : offsets[i + 1]] for i in range(first, len(offsets) - 1, 2)]
        return [story[: TARGETS + 1][None] for story in stories]

    def loss(net: nn.Module) -> float:
        total, count = 0.0, 0
        with torch.inference_mode():
            for ids in windows(1):
                logits = net(ids[:, :-1])
                total += float(F.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
                count += ids.shape[1] - 1
        return total / count

    return Task(
        name="stories260K",
        pattern=pattern,
        score="loss, nats",
        digits=4,
        exclude=(),
        include=None,
        load=lambda: load_stories(data / "models" / "stories260K.safetensors"),
        calibration=lambda: [ids[:, :-1] for ids in windows(0)],
        measure=loss,
        needed=("tinystories/stories.npz", "models/stories260K.safetensors"),
    )
