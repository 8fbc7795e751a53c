"""How far the choice of the STS-B pairs moves a difference of two encoders: its standard error.

The fine-tuned encoders' outputs are not kept, so it is measured on the dense encoder and the one
under its 4:8T mask, untrained: two that agree less than two fine-tuned ones, so the error is not
too small.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import nn

from experiments import stsb
from experiments.finetune_minilm.run import model_folder
from experiments.paper import networks
from experiments.paper.common import Session
from experiments.runs import machine
from transposable import find_mask

ITEM: Final = "pairs"
PATTERN: Final = "4:8T"
FILE: Final = "stsb/sts-dev.csv"
DRAWS: Final = 1000


def run(session: Session) -> None:
    from transformers import AutoTokenizer

    session.need(ITEM, [FILE])
    torch.set_num_threads(session.threads)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    pairs = stsb.tokenised(session.data / FILE, tokenizer)
    net = networks.load(session, networks.ENCODER)
    dense = cosines(net, pairs)
    with torch.no_grad():
        for weight in networks.weights(net, networks.ENCODER):
            weight.tensor.mul_(find_mask(weight.tensor, PATTERN).tensor)
    masked = cosines(net, pairs)
    found = bootstrap(dense.numpy(), masked.numpy(), pairs.scores.numpy())
    session.save(ITEM, {"pattern": PATTERN, "pairs": len(pairs), **found, "machine": machine()})


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


def bootstrap(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]
) -> dict[str, float]:
    """100 x Spearman of both, and standard errors of one and of the difference over the pairs."""
    from scipy.stats import spearmanr

    def both(index: Any) -> tuple[float, float]:
        one, other = (100 * spearmanr(x[index], scores[index]).statistic for x in (a, b))
        return float(one), float(other)

    generator = np.random.default_rng(0)
    drawn = np.array([both(generator.integers(len(a), size=len(a))) for _ in range(DRAWS)])
    first, second = both(slice(None))
    return {
        "dense": first,
        "masked": second,
        "error": float(drawn[:, 0].std()),
        "error_of_difference": float((drawn[:, 0] - drawn[:, 1]).std()),
    }
