"""AdaPrune as published: the mean of what is pruned is absorbed, then Adam on samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from transposable.errors import MethodError
from transposable.pattern import Pattern
from transposable.prune.methods.base import Method, Pruned
from transposable.prune.methods.settings import check_count, check_not_negative
from transposable.prune.problem import LayerProblem
from transposable.prune.reading import Reading
from transposable.prune.scores import Scores, make_scores

Samples = Sequence[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class PublishedAdaPrune(Method):
    """The published form of AdaPrune, for comparison with the exact one.

    First the pruned weights of every group are absorbed into its kept ones, see :func:`absorb`.
    Then Adam minimises the mean squared error of the layer's output on minibatches drawn without
    repetition within a batch; after every step the pruned weights are set to zero again:

        V <- S * Adam(V, grad mean((layer(x; V, b) - y)^2))

    Attributes:
        scores: from which the mask is found once.
        steps: of Adam; 0 leaves the absorbed weights.
        batch: samples of a minibatch, entries of the first dimension of the layer's inputs (an
            image, a sequence); all there are if they are fewer.
        rate: learning rate of the weight.
        bias_rate: learning rate of the bias, where the layer has one.
        seed: of the draws; the global random state is neither read nor changed.

    Its masks of tiles are the exact ones of this package, where the code of the publication takes
    the largest of each group. Nothing keeps the result from being worse than the mask alone.

    Raises:
        MethodError: if a setting is out of range, or the problem comes without samples or module.

    Complexity: ``steps`` forward and backward passes of the layer for ``batch`` samples.

    Source: Hubara et al., NeurIPS 2021, and its code (AdaPrune/utils/adaprune.py).

    Example:
        >>> PublishedAdaPrune(steps=100).needs_samples
        True
    """

    scores: str | Scores = "magnitude"
    steps: int = 1000
    batch: int = 50
    rate: float = 1e-3
    bias_rate: float = 1e-2
    seed: int = 0

    name: ClassVar[str] = "adaprune-published"
    needs_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_not_negative("PublishedAdaPrune", rate=self.rate, bias_rate=self.bias_rate)
        check_count("PublishedAdaPrune", 0, steps=self.steps)
        check_count("PublishedAdaPrune", 1, batch=self.batch)
        make_scores(self.scores)

    def prune(self, problem: LayerProblem) -> Pruned:
        if problem.module is None or not problem.samples:
            raise MethodError(
                f"PublishedAdaPrune: layer {problem.name!r} came without "
                f"{'its module' if problem.module is None else 'samples'}; this method looks at "
                "both: give calibration data, or take the method 'adaprune'"
            )
        mask = problem.find_mask(make_scores(self.scores)(problem))
        support = mask & problem.allowed
        start = absorb(problem.weight, support, problem.pattern, problem.reading)
        tuner = _Tuner(problem.module, problem.reading, support, self)
        weight, change = tuner.run(start, problem.samples)
        info = {"steps": self.steps}
        return Pruned(weight.to(problem.weight.dtype) * support, mask, info, change)


def absorb(
    weight: torch.Tensor, support: torch.Tensor, pattern: Pattern, reading: Reading
) -> torch.Tensor:
    """Kept weights plus what their group loses, sign and all, shared equally among them.

        v_j = S_j (w_j + sum_k (1 - S_k) w_k / sum_k S_k)   over each group of M consecutive inputs

    A group is that of the pattern along the inputs of one output, at one kernel position; the last
    one may be shorter, and a group that keeps nothing is lost. Where half is kept, this adds the
    mean of the pruned weights to each kept one. An unstructured pattern has one group, the layer,
    to whose kept weights the mean of all pruned ones is added. All of it follows the code of the
    publication, but that its groups run on from one kernel position to the next.

    Args:
        weight: w [groups, rows, cols].
        support: S, bool [groups, rows, cols].
        pattern: of the mask.
        reading: of the layer.

    Example:
        >>> reading = Reading(1, 1, 1, 4)
        >>> kept = torch.tensor([[[True, True, False, False]]])
        >>> absorb(torch.tensor([[[3.0, -5, 1, -2]]]), kept, Pattern.parse("2:4"), reading)
        tensor([[[ 2.5000, -5.5000,  0.0000,  0.0000]]])
    """
    lost = weight.masked_fill(support, 0)
    if pattern.structure == "unstructured":
        count = max(1, int((~support).count_nonzero()))
        return (weight + lost.sum() / count).masked_fill(~support, 0)
    width = -(-reading.channels // pattern.m) * pattern.m

    def in_groups(matrix: torch.Tensor) -> torch.Tensor:
        split = matrix.reshape(reading.groups, reading.rows, reading.positions, reading.channels)
        padded = F.pad(split, (0, width - reading.channels))
        return padded.reshape(*split.shape[:-1], -1, pattern.m)

    kept = in_groups(support.to(weight.dtype)).sum(-1, keepdim=True)
    share = in_groups(lost).sum(-1, keepdim=True) / kept.clamp(min=1)
    spread = share.expand(*share.shape[:-1], pattern.m).flatten(-2)[..., : reading.channels]
    return (weight + spread.reshape(weight.shape)).masked_fill(~support, 0)


class _Tuner:
    """Adam on the weight and bias of one layer."""

    def __init__(
        self,
        module: nn.Module,
        reading: Reading,
        support: torch.Tensor,
        settings: PublishedAdaPrune,
    ) -> None:
        dense = module.weight
        assert isinstance(dense, torch.Tensor)
        self._module, self._reading, self._settings = module, reading, settings
        self._shape = dense.shape
        # A step of Adam would be lost in a weight of half precision.
        self._dtype = torch.promote_types(dense.dtype, torch.float32)
        self._support = reading.weight(support, dense.shape).to(dense.device)
        self._has_bias = module.bias is not None

    def run(
        self, start: torch.Tensor, samples: Samples
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [groups, rows, cols] and what to add to the bias."""
        settings = self._settings
        # A single sample is given the first dimension that batches have.
        least = len(self._shape) if self._reading.conv else 2
        joined = [(x, y) if x.ndim >= least else (x[None], y[None]) for x, y in samples]
        draws = _Draws(joined, settings.batch, settings.seed)
        with torch.inference_mode(False), torch.enable_grad():
            weight = self._reading.weight(start, self._shape).to(self._dtype).contiguous()
            weight.requires_grad_()
            parameters = [{"params": [weight], "lr": settings.rate}]
            change: torch.Tensor | None = None
            if self._has_bias:
                outputs = self._reading.groups * self._reading.rows
                change = weight.new_zeros(outputs).requires_grad_()
                parameters.append({"params": [change], "lr": settings.bias_rate})
            adam = torch.optim.Adam(parameters)
            for _ in range(settings.steps):
                adam.zero_grad()
                self._add_gradients(weight, change, draws.next())
                adam.step()
                with torch.no_grad():
                    weight.mul_(self._support)
        return self._reading.matrix(weight.detach()), None if change is None else change.detach()

    def _add_gradients(
        self, weight: torch.Tensor, change: torch.Tensor | None, batches: Samples
    ) -> None:
        total = sum(y.numel() for _, y in batches)
        for x, y in batches:
            output = self._forward(x.to(self._dtype), weight, change)
            error = F.mse_loss(output, y.to(self._dtype), reduction="sum") / total
            error.backward()  # type: ignore[no-untyped-call]

    def _forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The operator of the module with this weight and bias; hooks of the module do not run."""
        if isinstance(self._module, (nn.Conv1d, nn.Conv2d)):
            y: torch.Tensor = self._module._conv_forward(x, weight, bias)
            return y
        return F.linear(x, weight.t() if self._reading.stored_in_out else weight, bias)


class _Draws:
    """Minibatches of samples, which may be of several shapes, without joining them in memory."""

    def __init__(self, samples: Samples, batch: int, seed: int) -> None:
        self._samples = samples
        self._ends = torch.tensor([len(x) for x, _ in self._samples]).cumsum(0)
        self._batch = batch
        self._generator = torch.Generator().manual_seed(seed)

    def next(self) -> Samples:
        """Samples drawn without repetition, those of one shape together."""
        chosen = torch.randperm(int(self._ends[-1]), generator=self._generator)[: self._batch]
        owners = torch.searchsorted(self._ends, chosen, right=True)
        by_shape: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for owner in sorted(set(owners.tolist())):
            x, y = self._samples[owner]
            first = int(self._ends[owner]) - len(x)
            at = (chosen[owners == owner] - first).to(x.device)
            by_shape.setdefault(x.shape[1:], []).append((x[at], y[at]))
        return [
            (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
            for parts in by_shape.values()
        ]
