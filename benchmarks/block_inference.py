"""A pre-trained sentence encoder, dense, with masked dense weights, and compressed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from benchmarks import onednn
from benchmarks.gate import GateError
from benchmarks.harness import Contender, interleave, ratio, timed
from transposable import DependencyError, FileError, densify, sparsify
from transposable.demo.encoder import MODEL, PACKAGE, load_encoder
from transposable.demo.sentences import SENTENCES

BATCH: Final = 32
LENGTH: Final = 128
LAYERS: Final = "encoder.*"
TOLERANCE: Final = 1e-5
"""Of an entry of the unit-length embeddings; of a layer's output, relative to its length."""

Tokens = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Encoder:
    """The network, its batches by name, and what it is."""

    net: nn.Module
    batches: dict[str, Tokens]
    title: str
    note: str | None


def compressed(net: nn.Module) -> None:
    """The library's compression, in place."""
    from transposable import compress

    compress(net)


def load(quick: bool, seed: int) -> Encoder:
    """The pre-trained encoder; without its package a network of its shape with random weights."""
    draw = torch.Generator().manual_seed(seed)
    batch, length = (4, 16) if quick else (BATCH, LENGTH)
    note = None
    sentences: Tokens | None = None
    try:
        encoder = load_encoder()
        net, title = encoder.net, MODEL
        texts = [SENTENCES[i % len(SENTENCES)] for i in range(batch)]
        sentences = dict(encoder.tokenizer(texts, padding=True, return_tensors="pt"))
    except (DependencyError, FileError) as error:
        net, title = _random_bert(seed), f"BERT of the shape of {MODEL}, random weights"
        note = f"skipped: {MODEL} and its sentences: {PACKAGE}: {error}"
    vocabulary = net.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
    ids = torch.randint(vocabulary, (batch, length), generator=draw)
    batches = {f"{batch} x {length} tokens": {"input_ids": ids, "attention_mask": ids * 0 + 1}}
    if sentences is not None:
        shape = "x".join(map(str, sentences["input_ids"].shape))
        batches[f"{batch} sentences, padded to {shape}"] = sentences
    return Encoder(net, batches, title, note)


def embed(net: nn.Module, tokens: Tokens) -> torch.Tensor:
    """Unit-length means of the last hidden states over the real tokens."""
    with torch.inference_mode():
        states = net(**tokens).last_hidden_state
    real = tokens["attention_mask"][..., None]
    return nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=1)


def measure(
    pattern: str,
    encoder: Encoder,
    rounds: int,
    compress: Callable[[nn.Module], None] = compressed,
) -> dict[str, Any]:
    """Interleaved inference under one pattern; the results for the JSON file.

    Raises:
        GateError: before anything is timed.
    """
    masked, ours = copy.deepcopy(encoder.net), copy.deepcopy(encoder.net)
    sparsify(masked, pattern, include=LAYERS)
    densify(masked)
    sparsify(ours, pattern, include=LAYERS)
    compress(ours)
    ours.eval()
    layers = check_layers(pattern, masked, ours)
    nets = {"dense": encoder.net, "masked dense": masked, "compressed": ours}
    if onednn.available():
        nets["dense, oneDNN"] = onednn.through_onednn(encoder.net, "encoder.")
    differences = {name: check(pattern, masked, ours, b) for name, b in encoder.batches.items()}
    rows = {}
    for name, batch in encoder.batches.items():
        series = interleave(
            [
                Contender(kind, timed(lambda net=net, batch=batch: embed(net, batch)))  # type: ignore[misc]
                for kind, net in nets.items()
            ],
            rounds,
        )
        rows[name] = {
            "times": {kind: one.summary() for kind, one in series.items()},
            "ratios": {
                kind: {clock: ratio(one, series["compressed"], clock) for clock in ("wall", "cpu")}
                for kind, one in series.items()
                if kind != "compressed"
            },
            "largest_difference": differences[name],
        }
    return {
        "pattern": pattern,
        "model": encoder.title,
        "rounds": rounds,
        "layers": layers,
        "rows": rows,
    }


def check_layers(pattern: str, masked: nn.Module, ours: nn.Module) -> int:
    """Every linear layer by itself: in the whole, one that matters little could be wrong unseen.

    Returns:
        The number of layers compared.

    Raises:
        GateError: naming the layer.
    """
    draw = torch.Generator().manual_seed(0)
    count = 0
    for name, layer in masked.named_modules():
        if isinstance(layer, nn.Linear):
            x = torch.randn(17, layer.in_features, generator=draw)
            with torch.inference_mode():
                expected, got = layer.double()(x.double()), ours.get_submodule(name)(x)
            layer.float()
            error = float((got.double() - expected).norm() / expected.norm())
            if not error <= TOLERANCE:  # so that NaN fails too
                raise GateError(
                    f"gate: {pattern}: layer {name!r} differs from the masked dense one in float64 "
                    f"by {error:.1e} of its output's length, allowed is {TOLERANCE:.0e}"
                )
            count += 1
    return count


def check(pattern: str, masked: nn.Module, ours: nn.Module, batch: Tokens) -> float:
    """The largest difference of the embeddings.

    Raises:
        GateError: if it is more than rounding.
    """
    expected, got = embed(masked, batch), embed(ours, batch)
    difference = float((got - expected).abs().max())
    if not difference <= TOLERANCE:  # so that NaN fails too
        raise GateError(
            f"gate: {pattern}: an embedding differs from the masked dense model's by "
            f"{difference:.1e}, allowed is {TOLERANCE:.0e}"
        )
    return difference


def _random_bert(seed: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    net: nn.Module = BertModel(config).eval()
    return net
