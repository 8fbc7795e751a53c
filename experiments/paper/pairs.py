"""Item: the sentence encoder under each pattern, one-shot, and how far the choice of pairs matters.

The same summary as of a ResNet at one stage, with 100 x Spearman of STS-B in place of top-1. Its
error of a difference also stands in for that of two fine-tuned encoders, whose outputs are not
kept: those agree more than a dense encoder and a pruned untrained one, so that it is not too small.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import nn

from experiments import stsb
from experiments.finetune_minilm.run import model_folder
from experiments.paper import networks
from experiments.paper.accuracy import DENSE, STAGES
from experiments.paper.common import PATTERNS, Session
from experiments.paper.diversity import COMPARED, METHODS, block_log10, ranks
from experiments.runs import machine
from transposable import find_mask

ITEM: Final = "pairs"
FILE: Final = "stsb/sts-dev.csv"
UNIT: Final = "100 x Spearman"
DRAWS: Final = 1000


def run(session: Session) -> None:
    session.need(ITEM, [FILE])
    from transformers import AutoTokenizer

    torch.set_num_threads(session.threads)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    pairs = stsb.tokenised(session.data / FILE, tokenizer)
    net = networks.load(session, networks.ENCODER)
    weights = list(networks.weights(net, networks.ENCODER))
    dense = [weight.tensor.clone() for weight in weights]
    found = {}
    for pattern in (DENSE, *PATTERNS):
        with torch.no_grad():
            for weight, values in zip(weights, dense, strict=True):
                weight.tensor.copy_(values)
                if pattern != DENSE:
                    weight.tensor.mul_(find_mask(values, pattern).tensor)
        found[pattern] = cosines(net, pairs).numpy()
        print(f"{networks.ENCODER} {pattern}", flush=True)
    stage = summarised(found, pairs.scores.numpy())
    session.save(ITEM, {"pairs": len(pairs), "stage": stage, "machine": machine()})


def cosines(net: nn.Module, pairs: stsb.Pairs, size: int = 64) -> torch.Tensor:
    """The cosine of every pair, float64."""
    net.eval()
    found = torch.empty(len(pairs), dtype=torch.float64)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs.left[i]) + len(pairs.right[i]))
    with torch.inference_mode():
        for start in range(0, len(order), size):
            index = order[start : start + size]
            sentences = [pairs.left[i] for i in index] + [pairs.right[i] for i in index]
            left, right = stsb.embedded(net, *stsb.padded(sentences)).chunk(2)
            found[index] = (left * right).sum(1).double()
    return found


def summarised(
    cosines: dict[str, np.ndarray[Any, Any]], scores: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """Score by pattern, differences and rank correlations, with errors by bootstrap over pairs."""
    from scipy.stats import spearmanr

    names = list(cosines)
    table = np.stack([*cosines.values(), scores])

    def against(index: Any) -> np.ndarray[Any, Any]:
        chosen = table[:, index]
        return np.array([100 * spearmanr(one, chosen[-1]).statistic for one in chosen[:-1]])

    generator = np.random.default_rng(0)
    count = len(scores)
    drawn = np.stack([against(generator.integers(count, size=count)) for _ in range(DRAWS)])
    means = against(slice(None))

    def difference(of: str, to: str) -> dict[str, Any]:
        a, b = names.index(of), names.index(to)
        error = float((drawn[:, a] - drawn[:, b]).std())
        points = float(means[a] - means[b])
        return {"of": of, "to": to, "points": points, "error": error, "of_images": error}

    pruned = [names.index(pattern) for pattern in PATTERNS]
    return {
        "network": networks.ENCODER,
        "stage": STAGES[0],
        "unit": UNIT,
        "seeds": [0],
        "images": count,
        "score": {name: [round(float(means[i]), 4)] for i, name in enumerate(names)},
        "error": {name: float(drawn[:, i].std()) for i, name in enumerate(names)},
        "differences": [
            difference(a, b) for a, b in (*COMPARED, *((pattern, DENSE) for pattern in PATTERNS))
        ],
        "ranks": {
            method: ranks(
                [block_log10(method)[pattern] for pattern in PATTERNS],
                means[pruned],
                drawn[:, pruned],
            )
            for method in METHODS
        },
    }
