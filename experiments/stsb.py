"""STS Benchmark sentence pairs, tokenised once and batched by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

PAD = 0


@dataclass(frozen=True)
class Pairs:
    """Token ids of both sentences, and the human score from 0 to 5."""

    left: list[list[int]]
    right: list[list[int]]
    scores: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def part(self, start: int, stop: int) -> Pairs:
        return Pairs(self.left[start:stop], self.right[start:stop], self.scores[start:stop])


def read_pairs(file: Path, limit: int | None = None) -> tuple[list[str], list[str], np.ndarray]:
    """Sentence pairs and their human similarity scores, 0 to 5."""
    lines = file.read_text(encoding="utf-8").splitlines()[:limit]
    fields = [line.split("\t") for line in lines]
    return [f[5] for f in fields], [f[6] for f in fields], np.array([float(f[4]) for f in fields])


def tokenised(file: Path, tokenizer: Any) -> Pairs:
    """All pairs of one file."""
    left, right, scores = read_pairs(file)
    ids = [tokenizer(side, truncation=True, max_length=256)["input_ids"] for side in (left, right)]
    return Pairs(*ids, torch.from_numpy(scores).float())


def shuffled(pairs: Pairs, generator: torch.Generator) -> Pairs:
    order = torch.randperm(len(pairs), generator=generator)
    return Pairs(
        [pairs.left[i] for i in order], [pairs.right[i] for i in order], pairs.scores[order]
    )


def batches(
    pairs: Pairs, size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """One epoch of (ids of left then right sentences, attention mask, scores).

    Pairs of similar length share a batch: random order, sorted by length within every 20 batches'
    worth of pairs, and the batches in random order again. The last batch may be smaller.
    """
    length = torch.tensor([len(a) + len(b) for a, b in zip(pairs.left, pairs.right, strict=True)])
    chosen = []
    for pool in torch.randperm(len(pairs), generator=generator).split(20 * size):
        chosen += list(pool[length[pool].argsort()].split(size))
    for place in torch.randperm(len(chosen), generator=generator).tolist():
        index = chosen[place].tolist()
        sentences = [pairs.left[i] for i in index] + [pairs.right[i] for i in index]
        yield *padded(sentences), pairs.scores[index]


def alike(pairs: Pairs, count: int, size: int = 64) -> list[dict[str, torch.Tensor]]:
    """Sentences from all over, in batches of equal length that need no padding."""
    by_length: dict[int, list[list[int]]] = {}
    for sentence in (pairs.left + pairs.right)[:: max(1, 2 * len(pairs) // count)][:count]:
        by_length.setdefault(len(sentence), []).append(sentence)
    groups = [torch.tensor(group) for group in by_length.values()]
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for group in groups
        for ids in group.split(size)
    ]


def padded(sentences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [n, longest] and the mask that is 1 where there is a token."""
    ids = nn.utils.rnn.pad_sequence(
        [torch.tensor(s) for s in sentences], batch_first=True, padding_value=PAD
    )
    return ids, (ids != PAD).long()


def embedded(net: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the token states, normalised [n, d]."""
    states = net(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    weights = mask[..., None]
    return F.normalize((states * weights).sum(1) / weights.sum(1), dim=1)


def loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean squared difference of the cosine and a fifth of the score."""
    ids, mask, scores = batch
    left, right = embedded(net, ids, mask).chunk(2)
    return F.mse_loss((left * right).sum(1), scores / 5)


def spearman(net: nn.Module, pairs: Pairs, size: int = 64) -> float:
    """Rank correlation of cosine and score, in float32."""
    from scipy.stats import spearmanr

    net.eval()
    order = sorted(range(len(pairs)), key=lambda i: len(pairs.left[i]) + len(pairs.right[i]))
    cosines = torch.empty(len(pairs))
    with torch.inference_mode():
        for start in range(0, len(order), size):
            index = order[start : start + size]
            sentences = [pairs.left[i] for i in index] + [pairs.right[i] for i in index]
            left, right = embedded(net, *padded(sentences)).chunk(2)
            cosines[index] = (left * right).sum(1)
    return float(spearmanr(cosines.double().numpy(), pairs.scores.numpy()).statistic)
