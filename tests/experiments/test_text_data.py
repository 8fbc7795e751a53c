"""Sentence pairs and WikiText: batches, windows, scores."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments import stsb, wikitext


def pairs(count: int) -> stsb.Pairs:
    draw = torch.Generator().manual_seed(0)
    sides = [
        [torch.randint(1, 50, (n,), generator=draw).tolist() for n in lengths]
        for lengths in torch.randint(2, 30, (2, count), generator=draw).tolist()
    ]
    return stsb.Pairs(*sides, torch.arange(count) / count * 5)


class Encoder(nn.Module):
    """Token states that are rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def test_lines_with_quotes_and_extra_columns(tmp_path: Path) -> None:
    file = tmp_path / "sts.csv"
    lines = ['g\tf\ty\t1\t2.500\tA "b.\tC.', "g\tf\ty\t2\t0.000\tD.\tE.\textra"]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    left, right, scores = stsb.read_pairs(file)
    assert (left, right, scores.tolist()) == (['A "b.', "D."], ["C.", "E."], [2.5, 0.0])


def test_an_epoch_holds_every_pair_once() -> None:
    data = pairs(100)
    found = Counter()
    for ids, mask, scores in stsb.batches(data, 8, torch.Generator().manual_seed(1)):
        assert torch.equal(mask, (ids != stsb.PAD).long())
        left, right = ids.chunk(2)
        for a, b, score in zip(left.tolist(), right.tolist(), scores.tolist(), strict=True):
            index = round(score * 100 / 5)
            assert [i for i in a if i] == data.left[index]
            assert [i for i in b if i] == data.right[index]
            found[index] += 1
    assert found == Counter(range(100))


def test_similar_lengths_share_a_batch() -> None:
    data = pairs(400)
    padded = sum(ids.numel() for ids, _, _ in stsb.batches(data, 8, torch.Generator()))
    real = sum(map(len, data.left)) + sum(map(len, data.right))
    assert padded < 1.9 * real  # in random order 30 / 16


def test_loss_and_score_by_definition() -> None:
    torch.manual_seed(0)
    net, data = Encoder(), pairs(30)
    cosines = []
    for a, b in zip(data.left, data.right, strict=True):
        means = [net.table(torch.tensor(side)).mean(0) for side in (a, b)]
        cosines.append(F.cosine_similarity(*means, dim=0))
    cosines = torch.stack(cosines)
    batch = (*stsb.padded(data.left + data.right), data.scores)
    expected = (cosines - data.scores / 5).square().mean()
    assert stsb.loss(net, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    ranks = [values.argsort().argsort().double() for values in (cosines, data.scores)]
    correlation = torch.corrcoef(torch.stack(ranks))[0, 1].item()
    assert stsb.spearman(net, data, size=7) == pytest.approx(correlation, abs=1e-6)


def test_tokens_of_a_small_text(tmp_path: Path) -> None:
    folder = tmp_path / "wikitext2"
    folder.mkdir()
    words = [" the cat sat on the mat .\n", " a dog <unk> there !\n"]
    for part, times in (("train", 50), ("valid", 5)):
        with gzip.open(folder / f"{part}.txt.gz", "wt", encoding="utf-8") as file:
            file.writelines(words * times)
    train, valid = wikitext.load(tmp_path)
    assert train.max() < wikitext.VOCABULARY
    assert train.equal(valid.repeat(10))  # nothing is unknown and every line starts afresh


def test_windows_are_parts_of_the_text_and_follow_the_seed() -> None:
    ids = torch.arange(100)
    first = list(wikitext.windows(ids, 8, 4, 500, torch.Generator().manual_seed(0)))
    again = list(wikitext.windows(ids, 8, 4, 500, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert len(first) == 500
    starts = torch.cat([window[:, 0] for window in first])
    assert torch.equal(torch.cat(first), starts[:, None] + torch.arange(9))
    assert (starts.min(), starts.max()) == (0, 91)


def test_mean_loss_counts_every_target_once() -> None:
    class Net(nn.Module):
        def loss(self, windows: torch.Tensor) -> torch.Tensor:
            return windows[:, 1:].float().mean()

    # 33 ids: 4 windows of 8 targets, ids 1 to 32.
    assert wikitext.mean_loss(Net(), torch.arange(33), 8, size=3) == pytest.approx(16.5)
