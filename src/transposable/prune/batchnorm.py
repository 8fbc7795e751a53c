"""Batch norm after pruning: its running statistics made to fit the pruned network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transposable.prune.calibration import Call
from transposable.prune.ranks import Ranks
from transposable.prune.replay import run
from transposable.prune.weights import Weights

Stats = tuple[torch.Tensor, torch.Tensor]
Saved = tuple[torch.Tensor, ...]
Look = Callable[[str, _BatchNorm, torch.Tensor], None]


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of a model that keep running statistics.

    Example:
        >>> list(batch_norms(nn.Sequential(nn.BatchNorm1d(2), nn.InstanceNorm1d(2))))
        ['0']
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def saved(norms: Mapping[str, _BatchNorm]) -> dict[str, Saved]:
    """Copies of the running statistics."""
    return {name: tuple(b.clone() for b in _buffers(norm)) for name, norm in norms.items()}


def restore(norms: Mapping[str, _BatchNorm], stats: Mapping[str, Saved]) -> None:
    """Give batch norms the statistics that :func:`saved` copied."""
    for name, norm in norms.items():
        for buffer, value in zip(_buffers(norm), stats[name], strict=True):
            buffer.copy_(value)


@dataclass
class _Sums:
    """Sums of means and variances by batch norm, and of the weights of their terms."""

    means: dict[str, torch.Tensor]
    variances: dict[str, torch.Tensor]
    total: dict[str, int]

    def apply(self, norms: Mapping[str, _BatchNorm], ranks: Ranks) -> dict[str, int]:
        """Give batch norms the means over all ranks; the weights of these, 0 if there is none."""
        ranks.add([*self.means.values(), *self.variances.values()])
        totals = ranks.gather(self.total)
        total = {name: sum(one[name] for one in totals) for name in norms}
        for name, norm in norms.items():
            if total[name]:
                mean, var = self.means[name] / total[name], self.variances[name] / total[name]
                _set(norm, mean, var)
        return total


def match(model: nn.Module, calls: Sequence[Call], weights: Weights, ranks: Ranks) -> None:
    """Move running statistics by what pruning changed on the calibration data.

        r = var_pruned / var_dense,   var <- r var,
        mean <- mean_pruned + sqrt(r) (mean - mean_dense)

    with the moments of a batch norm's input over a batch, and then the mean over batches: on the
    calibration data its output has the moments that it had in the dense model. A new estimate would
    also take the difference between calibration and training data (plain images and augmented
    ones, say) for an effect of pruning; this does not.

    Args:
        model: in evaluation mode, with its pruned weights.
        calls: the calibration of this rank; each call runs the model twice.
        weights: gives the dense model.
        ranks: over which sums are taken.
    """
    norms = batch_norms(model)
    ranks.agree(lambda: _matched(norms, model, calls, weights)).apply(norms, ranks)


def _matched(
    norms: Mapping[str, _BatchNorm], model: nn.Module, calls: Sequence[Call], weights: Weights
) -> _Sums:
    before = saved(norms)
    means = {name: torch.zeros_like(mean) for name, (mean, *_) in before.items()}
    variances = {name: torch.zeros_like(var) for name, (_, var, *_) in before.items()}
    total: dict[str, int] = dict.fromkeys(norms, 0)
    for call in calls:
        dense: dict[str, list[Stats]] = {name: [] for name in norms}

        def note(
            name: str,
            norm: _BatchNorm,
            x: torch.Tensor,
            dense: Mapping[str, list[Stats]] = dense,
        ) -> None:
            dense[name].append(_moments(x))

        # A batch norm uses its new statistics at once, so that the next one sees what it will see.
        def adapt(
            name: str,
            norm: _BatchNorm,
            x: torch.Tensor,
            dense: Mapping[str, list[Stats]] = dense,
            samples: int = call.samples,
        ) -> None:
            if not dense[name]:  # a branch that the dense model did not take on this batch
                return
            mean_before, var_before, *_ = before[name]
            (mean_dense, var_dense), (mean, var) = dense[name].pop(0), _moments(x)
            ratio = (var + norm.eps) / (var_dense + norm.eps)
            new_mean = mean + ratio.sqrt() * (mean_before - mean_dense)
            new_var = ((var_before + norm.eps) * ratio - norm.eps).clamp_(min=0)
            _set(norm, new_mean, new_var)
            means[name] += samples * new_mean
            variances[name] += samples * new_var
            total[name] += samples

        with weights.all_dense(), _watched(norms, note):
            run(model, call)
        with _watched(norms, adapt):
            run(model, call)
        restore(norms, before)
    return _Sums(means, variances, total)


def estimate(model: nn.Module, calls: Sequence[Call], ranks: Ranks) -> None:
    """Take running statistics anew: the mean over batches of those of each batch.

    A batch norm that no batch reaches keeps what it has.

    Args:
        model: in evaluation mode; only its batch norms are trained meanwhile.
        calls: this rank's part of data as the network was trained with, augmented if that was.
        ranks: over which means are taken.
    """
    norms = batch_norms(model)
    before = saved(norms)
    ranks.agree(lambda: _estimated(norms, model, calls))
    batches = {name: int(_tracked(norm)) for name, norm in norms.items()}
    if ranks.size > 1:
        sums = _Sums(
            {name: _mean(norm) * batches[name] for name, norm in norms.items()},
            {name: _var(norm) * batches[name] for name, norm in norms.items()},
            batches,
        )
        batches = sums.apply(norms, ranks)
        for name, norm in norms.items():
            _tracked(norm).fill_(batches[name])
    restore({name: norm for name, norm in norms.items() if not batches[name]}, before)


def _estimated(norms: Mapping[str, _BatchNorm], model: nn.Module, calls: Sequence[Call]) -> None:
    momenta = {name: norm.momentum for name, norm in norms.items()}
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over batches
            norm.train()
        for call in calls:
            run(model, call)
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            norm.eval()


@contextmanager
def _watched(norms: Mapping[str, _BatchNorm], look: Look) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            look(name, norms[name], args[0])

        return before

    handles = [norm.register_forward_pre_hook(hook(name)) for name, norm in norms.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _moments(x: torch.Tensor) -> Stats:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    var, mean = torch.var_mean(x.float(), axes, correction=0)
    return mean, var


def _buffers(norm: _BatchNorm) -> list[torch.Tensor]:
    found = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    return [buffer for buffer in found if buffer is not None]


def _mean(norm: _BatchNorm) -> torch.Tensor:
    assert norm.running_mean is not None
    return norm.running_mean


def _var(norm: _BatchNorm) -> torch.Tensor:
    assert norm.running_var is not None
    return norm.running_var


def _tracked(norm: _BatchNorm) -> torch.Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked


def _set(norm: _BatchNorm, mean: torch.Tensor, var: torch.Tensor) -> None:
    _mean(norm).copy_(mean)
    _var(norm).copy_(var)
