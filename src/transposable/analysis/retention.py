"""How much of the weights' magnitude each pattern keeps, layer by layer, with exact masks."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from transposable.analysis.layers import Excluded, Layer, Layers, open_layers
from transposable.analysis.results import Kept, LayerRetention, Retention
from transposable.analysis.sampling import check_sample, sample_tiles, tile_side
from transposable.analysis.scoring import Scores, Scoring
from transposable.api import solve
from transposable.certificate import certify
from transposable.errors import PatternError, ScoresError
from transposable.export import Choice, Source
from transposable.export.retention import largest_sum
from transposable.mask import Mask
from transposable.pattern import Pattern
from transposable.solution import Solution


def retention(
    model: nn.Module | Source | str | os.PathLike[str],
    patterns: Iterable[str | Pattern],
    scores: Scores = "l1",
    *,
    choice: Choice | None = None,
    sample: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Retention:
    """How much of its magnitude a model keeps under each pattern, with the best mask of each.

        kept = max_S sum_ij S_ij a_ij / max_U sum_ij U_ij a_ij

    over masks S of the pattern and masks U of as many weights as S keeps, wherever they lie; a is
    |w|, w^2 or scores of your own. Transposable masks come with a proof, see :class:`Kept`. (Where
    the edge crops tiles, a mask may keep more than n/m of the weights, and U then does too; the
    ``kept*`` of ``transposable prune`` is relative to ceil(T n/m) of T weights.)

    Args:
        model: a torch module, a .safetensors file, a model directory or an opened source.
        patterns: for example ["2:4", "4:8T"].
        scores: "l1" (|w|), "l2" (w^2: the share of the squared norm), a function of (name, weight),
            or arrays by layer name, in the shape of the weights; own scores are >= 0.
        choice: which tensors, as for ``transposable prune``; default its policy for files and all
            layers that can be sparse for modules.
        sample: look at this many weights of each layer at most, in whole tiles drawn at random;
            None for all. Then "unstructured" is that of the sample too.
        seed: of the sample; a layer's tiles depend on it and on the layer's name only.
        threads: of the mask search.
        progress: called after every layer with the share done and the layer's name.

    Returns:
        A :class:`Retention`. Layers with NaN are named in ``failed`` and left out.

    Raises:
        FileError, SelectionError, LayoutError, PatternError: see their messages.
        ScoresError: if own scores are missing, negative, NaN or of another shape.

    Complexity: one pass over each layer per pattern; memory for a few times the largest layer.

    Example:
        >>> found = retention(nn.Linear(64, 64), ["2:4T", "4:8T", "4:8"])
        >>> a, b, c = (found.total(p).relative for p in ("2:4T", "4:8T", "4:8"))
        >>> 0.8 < a < b < c < 1
        True

    Hubara et al., NeurIPS 2021, figure 3b.
    """
    meter = Meter(patterns, scores, sample=sample, seed=seed, threads=threads)
    with open_layers(model, choice) as opened:
        return measure_all(opened, meter, progress)


def measure_all(
    opened: Layers,
    meter: Meter,
    progress: Callable[[float, str], None] | None = None,
    show: Callable[[LayerRetention, list[Mask]], None] | None = None,
) -> Retention:
    """The figures of every layer; ``show`` sees those of each together with its masks."""
    started = time.perf_counter()
    layers: list[LayerRetention] = []
    failed: list[Excluded] = []
    done, total = 0, max(sum(layer.weights for layer in opened.layers), 1)
    for layer in opened.layers:
        try:
            found, masks = meter.measure(layer)
        except NanWeightError as error:
            failed.append(Excluded(layer.name, layer.shape, str(error)))
        else:
            layers.append(found)
            if show is not None:
                show(found, masks)
        if progress is not None:
            done += layer.weights
            progress(done / total, layer.name)
    return Retention(
        title=opened.title,
        patterns=meter.patterns,
        scores=meter.scoring.name,
        sample=meter.sample,
        seed=meter.seed,
        layers=tuple(layers),
        excluded=opened.excluded,
        failed=tuple(failed),
        notes=opened.notes,
        seconds=time.perf_counter() - started,
    )


class NanWeightError(ScoresError):
    """A weight is NaN; the layer has no magnitude to keep."""


class Meter:
    """Measures one layer after the other with the same patterns, scores and sampling."""

    def __init__(
        self,
        patterns: Iterable[str | Pattern],
        scores: Scores = "l1",
        *,
        sample: int | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        given = [patterns] if isinstance(patterns, str | Pattern) else list(patterns)
        self.patterns = tuple(dict.fromkeys(Pattern.parse(pattern) for pattern in given))
        if not self.patterns:
            raise PatternError("retention: received no pattern; give at least one, such as '4:8T'")
        check_sample(sample, "retention")
        self.scoring = Scoring(scores)
        self._side = tile_side(self.patterns)
        self.sample = sample
        self.seed = seed
        self._threads = threads

    def measure(self, layer: Layer) -> tuple[LayerRetention, list[Mask]]:
        """The figures of a layer, and the mask of each pattern on its (sampled) matrices.

        Raises:
            NanWeightError: if a weight is NaN.
        """
        weight = layer.load()
        _refuse_nan(weight)
        scores, unit = self.scoring.of(layer.name, weight)
        # The same tiles of both: what is drawn depends on the layer's name.
        matrices, weights = (self._sampled(layer, tensor) for tensor in (scores, weight))
        measured = matrices.numel()
        dense = float(matrices.sum(dtype=torch.float64))
        best: dict[int, float] = {}
        kept, masks = [], []
        for pattern in self.patterns:
            try:
                solution = solve(matrices, pattern, layout="stacked", threads=self._threads)
            except ScoresError as error:
                raise ScoresError(f"retention: layer {layer.name!r}: {error}") from error
            count = int(solution.mask.tensor.count_nonzero())
            if count not in best:
                copy = matrices.clone(memory_format=torch.contiguous_format)
                best[count] = largest_sum(copy, count)
            kept.append(_figures(matrices, solution, best[count], dense, unit))
            masks.append(solution.mask)
        figures = LayerRetention(
            name=layer.name,
            shape=layer.shape,
            dtype=layer.dtype,
            layout=layer.layout.name,
            weights=layer.weights,
            measured=measured,
            zeros=measured - int(weights.count_nonzero()),
            kept=tuple(kept),
        )
        return figures, masks

    def _sampled(self, layer: Layer, tensor: torch.Tensor) -> torch.Tensor:
        matrices = layer.matrices(tensor)
        if self.sample is None:
            return matrices
        drawn = sample_tiles(matrices, self._side, self.sample, self.seed, layer.name)
        return matrices if drawn is None else drawn


def _figures(
    matrices: torch.Tensor, solution: Solution, best: float, dense: float, unit: float
) -> Kept:
    report = solution.mask.report()
    return Kept(
        pattern=solution.mask.pattern,
        kept=solution.objective * unit,
        unstructured=best * unit,
        dense=dense * unit,
        solver=solution.stats["solver"],
        status=solution.status.name,
        gap=solution.gap,
        certificate=_certificate(matrices, solution),
        groups={axis.axis: axis.groups for axis in report.axes},
        violations={axis.axis: axis.violations for axis in report.axes},
        promised=tuple(axis.axis for axis in report.axes if axis.required),
        seconds=solution.stats["seconds"],
    )


def _certificate(matrices: torch.Tensor, solution: Solution) -> float | None:
    if solution.potentials is None:
        return None
    found = certify(matrices, solution.mask, solution.potentials)
    return found.worst_gap if found.feasible else math.inf


def _refuse_nan(weight: torch.Tensor) -> None:
    # The sum of magnitudes is NaN exactly if one of them is: far faster than looking for it.
    if not math.isnan(float(weight.abs().sum(dtype=torch.float64))):
        return
    count = int(weight.isnan().sum())
    place = tuple(weight.isnan().nonzero()[0].tolist())
    raise NanWeightError(
        f"{count:,} of {weight.numel():,} weights {'is' if count == 1 else 'are'} NaN, the first "
        f"at index {place}"
    )
