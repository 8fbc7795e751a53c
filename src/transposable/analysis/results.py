"""What measuring a model finds: one pattern on one layer, a layer, a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transposable.analysis.layers import Excluded
from transposable.errors import PatternError
from transposable.export.retention import relative
from transposable.pattern import Pattern


@dataclass(frozen=True, slots=True)
class Kept:
    """One pattern on the measured weights of one layer.

    Attributes:
        pattern: the pattern.
        kept: sum of the scores that the best mask keeps.
        unstructured: sum of the largest scores, as many as the mask keeps, wherever they lie.
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
    scaled up to its size. Layers with infinite sums are in neither, ``infinite`` counts them; both
    are None where nothing is left. ``worst`` names the layer that keeps the least. ``gap`` is the
    largest of any layer or certified tile.
    """

    pattern: Pattern
    relative: float | None
    of_dense: float | None
    worst: str
    least: float | None
    most: float | None
    infinite: int
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
        finite = [
            (layer.weights / layer.measured, one, layer.name)
            for layer, one in zip(self.layers, found, strict=True)
            if one.relative is not None and one.of_dense is not None
        ]

        def all_of(value: Callable[[Kept], float]) -> float:
            return sum(scale * value(one) for scale, one, _ in finite)

        def share(of: Callable[[Kept], float]) -> float | None:
            return relative(all_of(lambda one: one.kept), all_of(of)) if finite else None

        known = [(one.relative or 0.0, name) for _, one, name in finite]
        groups: dict[str, int] = {}
        violations: dict[str, int] = {}
        for one in found:
            for axis, count in one.violations.items():
                violations[axis] = violations.get(axis, 0) + count
                groups[axis] = groups.get(axis, 0) + one.groups[axis]
        least, worst = min(known, default=(None, ""))
        return Total(
            pattern=parsed,
            relative=share(lambda one: one.unstructured),
            of_dense=share(lambda one: one.dense),
            worst=worst,
            least=least,
            most=max(known, default=(None, ""))[0],
            infinite=len(found) - len(finite),
            gap=max((max(one.gap, one.certificate or 0.0) for one in found), default=0.0),
            proved=sum(one.proved for one in found),
            layers=len(found),
            groups=groups,
            violations=violations,
            promised=found[0].promised if found else (),
            seconds=sum(one.seconds for one in found),
            measured=self.measured,
        )
