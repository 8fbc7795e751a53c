"""WikiText-2 as tokens of a byte-pair encoding that is trained on its own training text."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import torch

from experiments.devices import device_of

VOCABULARY = 4096


def read(data: Path, part: str) -> str:
    with gzip.open(data / "wikitext2" / f"{part}.txt.gz", "rt", encoding="utf-8") as file:
        return file.read()


def load(data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 of the training and of the validation text."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    texts = {part: read(data, part).splitlines(keepends=True) for part in ("train", "valid")}
    tokenizer.train_from_iterator(texts["train"], trainer)
    encoded = {
        part: [i for line in tokenizer.encode_batch(lines) for i in line.ids]
        for part, lines in texts.items()
    }
    return torch.tensor(encoded["train"]), torch.tensor(encoded["valid"])


def windows(
    ids: torch.Tensor, length: int, size: int, count: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """``count`` batches [size, length + 1] from random places."""
    for _ in range(count):
        starts = torch.randint(len(ids) - length, (size, 1), generator=generator)
        yield ids[starts + torch.arange(length + 1)]


def mean_loss(net: torch.nn.Module, ids: torch.Tensor, length: int, size: int = 16) -> float:
    """Mean next-token loss in nats over consecutive windows that share no target, in float32."""
    net.eval()
    inside = (len(ids) - 1) // length
    starts = torch.arange(inside)[:, None] * length
    total, device = 0.0, device_of(net)
    with torch.inference_mode():
        for part in starts.split(size):
            windows = ids[part + torch.arange(length + 1)].to(device)
            total += net.loss(windows).item() * len(part)
    return total / inside
