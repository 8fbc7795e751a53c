"""How much of the weights' magnitude each pattern keeps, layer by layer, with exact masks."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transposable.analysis.layers import Excluded, Layer, open_layers
from transposable.analysis.sampling import check_sample, sample_tiles, tile_side
from transposable.analysis.scoring import Scores, Scoring
from transposable.api import solve
from transposable.certificate import certify
from transposable.errors import PatternError, ScoresError
from transposable.export import Choice, Source
from transposable.export.retention import largest_sum, relative
from transposable.mask import Mask
from transposable.pattern import Pattern
from transposable.solution import Solution


@dataclass(frozen=True, slots=True)
class Kept:
    """One pattern on the measured weights of one layer.

    Attributes:
        pattern: the pattern.
        kept: sum of the scores that the best mask keeps.
        unstructured: sum that the best mask of the same density keeps without any pattern.
        dense: sum of all scores.
        solver, status, gap: as in :class:`transposable.Solution`.
        certificate: worst relative gap of a tile, by :func:`transposable.certify`, which shares no
            code with the solver; None where there is nothing to certify (groups of plain patterns
            are independent: the N largest are the best).
        groups, violations: by axis "in" and "out" ("all"), of the mask.
        promised: the axes along which the pattern promises no violation.
        seconds: time of the mask search.
    """

    pattern: Pattern
    kept: float
    unstructured: float
    dense: float
    solver: str
    status: str
    gap: float
    certificate: float | None
    groups: dict[str, int]
    violations: dict[str, int]
    promised: tuple[str, ...]
    seconds: float

    @property
    def relative(self) -> float | None:
        """kept / unstructured: 1 means that the pattern costs nothing; None with infinities."""
        return relative(self.kept, self.unstructured)

    @property
    def of_dense(self) -> float | None:
        """kept / dense."""
        return relative(self.kept, self.dense)

    @property
    def proved(self) -> bool:
        """Whether the mask is proved to be the best one of its pattern."""
        return self.status == "OPTIMAL" and (self.certificate or 0.0) <= 1e-6


@dataclass(frozen=True, slots=True)
class LayerRetention:
    """All patterns on one layer; ``measured`` of its ``weights`` were looked at."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    weights: int
    measured: int
    zeros: int
    kept: tuple[Kept, ...]

    @property
    def sampled(self) -> bool:
        """Whether only a part of the layer was measured."""
        return self.measured < self.weights

    @property
    def zero_share(self) -> float:
        """Share of the measured weights that is zero."""
        return self.zeros / self.measured

    @property
    def gaps(self) -> list[float]:
        """Of each pattern the larger of the solver's gap and the certificate's."""
        return [max(one.gap, one.certificate or 0.0) for one in self.kept]


@dataclass(frozen=True, slots=True)
class Total:
    """One pattern on all layers, each counted with all its weights.

    ``relative`` and ``of_dense`` are ratios of sums over the layers; a sampled layer's sums are
    scaled up to its size. ``worst`` names the layer that keeps the least. ``gap`` is the largest of
    any layer or certified tile.
    """

    pattern: Pattern
    relative: float | None
    of_dense: float | None
    worst: str
    least: float | None
    most: float | None
    gap: float
    proved: int
    layers: int
    groups: dict[str, int]
    violations: dict[str, int]
    promised: tuple[str, ...]
    seconds: float
    measured: int


@dataclass(frozen=True, slots=True)
class Retention:
    """What :func:`retention` found.

    Attributes:
        title: the file's name, or the model's class.
        patterns: in the order given.
        scores: name of the scores: "l1", "l2" or "own".
        sample: most weights measured in a layer; None for all of them.
        seed: of the samples.
        layers: in the model's order.
        excluded: tensors that were not measured, with the reasons.
        failed: layers whose weights are no numbers (NaN); they are no part of the figures.
        notes: what a reader should know about the file.
        seconds: of everything.
    """

    title: str
    patterns: tuple[Pattern, ...]
    scores: str
    sample: int | None
    seed: int
    layers: tuple[LayerRetention, ...]
    excluded: tuple[Excluded, ...]
    failed: tuple[Excluded, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def weights(self) -> int:
        """Number of weights of the layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def measured(self) -> int:
        """How many of them were looked at."""
        return sum(layer.measured for layer in self.layers)

    def total(self, pattern: str | Pattern) -> Total:
        """A pattern on all layers.

        Raises:
            PatternError: if it was not measured.
        """
        parsed = Pattern.parse(pattern)
        if parsed not in self.patterns:
            raise PatternError(
                f"Retention.total: received {parsed}; measured are "
                f"{', '.join(map(str, self.patterns))}"
            )
        index = self.patterns.index(parsed)
        found = [layer.kept[index] for layer in self.layers]
        scale = [layer.weights / layer.measured for layer in self.layers]

        def all_of(value: Callable[[Kept], float]) -> float:
            return sum(s * value(one) for s, one in zip(scale, found, strict=True))

        kept = all_of(lambda one: one.kept)
        known = [
            (one.relative, layer.name)
            for one, layer in zip(found, self.layers, strict=True)
            if one.relative is not None
        ]
        groups: dict[str, int] = {}
        violations: dict[str, int] = {}
        for one in found:
            for axis, count in one.violations.items():
                violations[axis] = violations.get(axis, 0) + count
                groups[axis] = groups.get(axis, 0) + one.groups[axis]
        least, worst = min(known, default=(None, ""))
        return Total(
            pattern=parsed,
            relative=relative(kept, all_of(lambda one: one.unstructured)) if found else None,
            of_dense=relative(kept, all_of(lambda one: one.dense)) if found else None,
            worst=worst,
            least=least,
            most=max(known, default=(None, ""))[0],
            gap=max((max(one.gap, one.certificate or 0.0) for one in found), default=0.0),
            proved=sum(one.proved for one in found),
            layers=len(found),
            groups=groups,
            violations=violations,
            promised=found[0].promised if found else (),
            seconds=sum(one.seconds for one in found),
            measured=self.measured,
        )


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

    over masks S of the pattern and masks U of as many weights (ceil(T n/m) of T) wherever they lie;
    a = |w|, w^2 or scores of your own. Transposable masks come with a proof, see :class:`Kept`.

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
    started = time.perf_counter()
    meter = Meter(patterns, scores, sample=sample, seed=seed, threads=threads)
    layers, failed = [], []
    with open_layers(model, choice) as opened:
        done, all_weights = 0, max(sum(layer.weights for layer in opened.layers), 1)
        for layer in opened.layers:
            try:
                layers.append(meter.measure(layer)[0])
            except NanWeightError as error:
                failed.append(Excluded(layer.name, layer.shape, str(error)))
            if progress is not None:
                done += layer.weights
                progress(done / all_weights, layer.name)
        return Retention(
            title=opened.title,
            patterns=meter.patterns,
            scores=meter.scoring.name,
            sample=sample,
            seed=seed,
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
        self._sample = sample
        self._seed = seed
        self._threads = threads

    def measure(self, layer: Layer) -> tuple[LayerRetention, list[Mask]]:
        """The figures of a layer, and the mask of each pattern on its (sampled) matrices.

        Raises:
            NanWeightError: if a weight is NaN.
        """
        weight = layer.load()
        _refuse_nan(weight)
        scores, unit = self.scoring.of(layer.name, weight)
        matrices = layer.matrices(scores)
        zeros_in = layer.matrices(weight)
        if self._sample is not None:
            drawn = sample_tiles(matrices, self._side, self._sample, self._seed, layer.name)
            if drawn is not None:
                arguments = (self._side, self._sample, self._seed, layer.name)
                again = sample_tiles(zeros_in, *arguments)
                assert again is not None
                matrices, zeros_in = drawn, again
        measured = matrices.numel()
        dense = float(matrices.sum(dtype=torch.float64))
        best: dict[int, float] = {}
        kept, masks = [], []
        for pattern in self.patterns:
            count = -(-measured * pattern.n // pattern.m)
            if count not in best:
                copy = matrices.clone(memory_format=torch.contiguous_format)
                best[count] = largest_sum(copy, count)
            found = self._one(layer, matrices, pattern, best[count], dense, unit)
            kept.append(found[0])
            masks.append(found[1])
        figures = LayerRetention(
            name=layer.name,
            shape=layer.shape,
            dtype=layer.dtype,
            layout=layer.layout.name,
            weights=layer.weights,
            measured=measured,
            zeros=measured - int(zeros_in.count_nonzero()),
            kept=tuple(kept),
        )
        return figures, masks

    def _one(
        self,
        layer: Layer,
        matrices: torch.Tensor,
        pattern: Pattern,
        best: float,
        dense: float,
        unit: float,
    ) -> tuple[Kept, Mask]:
        try:
            solution = solve(matrices, pattern, layout="stacked", threads=self._threads)
        except ScoresError as error:
            raise ScoresError(f"retention: layer {layer.name!r}: {error}") from error
        report = solution.mask.report()
        figures = Kept(
            pattern=pattern,
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
        return figures, solution.mask


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
