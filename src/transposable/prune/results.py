"""What became of a layer: brought to all ranks, written to disk, read again."""

from __future__ import annotations

from dataclasses import replace

import torch

from transposable.prune.checkpoint import Checkpoint, Saved
from transposable.prune.plan import Layer
from transposable.prune.ranks import Ranks
from transposable.prune.report import LayerReport
from transposable.prune.weights import Weights


class Results:
    """Weights, biases and reports of pruned layers.

    Args:
        weights: of this process.
        ranks: all processes.
        checkpoint: on rank 0, where results are kept; None for nowhere.
    """

    def __init__(self, weights: Weights, ranks: Ranks, checkpoint: Checkpoint | None) -> None:
        self._weights = weights
        self._ranks = ranks
        self._checkpoint = checkpoint

    def finished(self) -> set[str]:
        """The layers that an earlier run has pruned."""
        checkpoint = self._checkpoint
        names = set() if checkpoint is None else checkpoint.finished()
        return self._ranks.share(0, names)

    def load(self, layer: Layer) -> LayerReport:
        """Give a layer what an earlier run made of it; on rank 0."""
        assert self._checkpoint is not None
        saved = self._checkpoint.load(layer.name)
        self._weights.set(layer.weight, saved.weight)
        if saved.bias is not None and layer.bias is not None:
            self._weights.set(layer.bias, saved.bias)
        return replace(saved.report, mask=saved.report.mask.to(layer.weight.device))

    def save(self, layer: Layer, report: LayerReport) -> None:
        """Keep what this run made of a layer; for a later one, if this is killed."""
        if self._checkpoint is not None:
            bias = layer.bias if self._has_new_bias(layer) else None
            self._checkpoint.save(Saved(layer.weight, bias, report))

    def share(self, layer: Layer, owner: int, report: LayerReport | None) -> LayerReport:
        """Have on all ranks what the owner of a layer made of it; the others have no report."""
        ranks = self._ranks
        if ranks.size == 1:
            assert report is not None
            return report
        said = None
        if report is not None:
            said = (replace(report, mask=torch.empty(0)), self._has_new_bias(layer))
        shared = ranks.share(owner, said)
        assert shared is not None
        found, has_new_bias = shared
        weight = ranks.share_tensor(owner, layer.weight)
        mask = torch.zeros(layer.weight.shape, dtype=torch.bool, device=weight.device)
        mask = ranks.share_tensor(owner, mask if report is None else report.mask)
        news = {layer.weight: weight}
        if has_new_bias and layer.bias is not None:
            news[layer.bias] = ranks.share_tensor(owner, layer.bias)
        if ranks.rank != owner:
            for parameter, value in news.items():
                self._weights.set(parameter, value)
        return replace(found, mask=mask)

    def _has_new_bias(self, layer: Layer) -> bool:
        return layer.bias is not None and self._weights.changed(layer.bias)
