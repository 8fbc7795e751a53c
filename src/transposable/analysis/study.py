"""Everything that a report shows, measured: retention, diversity, feasibility, pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from transposable.analysis.diversity import Diversity, diversity
from transposable.analysis.layers import Layer, open_layers
from transposable.analysis.results import LayerRetention, Retention
from transposable.analysis.retention import Meter, measure_all
from transposable.analysis.sampling import tile_side
from transposable.analysis.scoring import Scores
from transposable.analysis.transition import Simulation, Transition, simulate, transition
from transposable.errors import SelectionError
from transposable.export import Choice, Source
from transposable.mask import Mask
from transposable.names import matcher
from transposable.pattern import Pattern

WINDOW: Final = 16
"""Least side of the part of a mask that is drawn."""

MOST_PICTURED: Final = 6
"""Most layers whose masks are drawn."""

DRAWS: Final = 20_000
"""Groups drawn at each share of zeros for the check of the feasibility curves."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The upper left corner of a layer's mask: of its first matrix, or of the sampled tiles."""

    layer: str
    pattern: Pattern
    kept: NDArray[np.bool_]
    sampled: bool


@dataclass(frozen=True, slots=True)
class Step:
    """Feasibility of N:M: where it steps, and drawn groups around there."""

    transition: Transition
    drawn: tuple[Simulation, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """What :func:`study` found.

    Attributes:
        retention: of every layer.
        block: side of the block whose masks are counted.
        diversities: exact counts for a block, by pattern; unstructured ones of the same densities
            come first.
        paper: the paper's closed form for the same block, in the same order.
        steps: feasibility of each N:M.
        pictures: corners of masks.
        seconds: of everything.
    """

    retention: Retention
    block: int
    diversities: tuple[Diversity, ...]
    paper: tuple[Diversity, ...]
    steps: tuple[Step, ...]
    pictures: tuple[Picture, ...]
    seconds: float


def study(
    model: nn.Module | Source | str | os.PathLike[str],
    patterns: Iterable[str | Pattern],
    scores: Scores = "l1",
    *,
    choice: Choice | None = None,
    show: Sequence[str] = (),
    sample: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Study:
    """Measure a model for a report.

    Args:
        model, patterns, scores, choice, sample, seed, threads, progress: as in
            :func:`transposable.analysis.retention`.
        show: names of layers whose masks are drawn, at most MOST_PICTURED of them; globs, or "re:"
            and a regular expression. By default the first, the middle and the last layer.

    Returns:
        A :class:`Study`, for ``render`` and ``document``.

    Raises:
        SelectionError: if ``show`` matches no layer; others as in ``retention``.

    Example:
        >>> found = study(nn.Linear(32, 32), ["2:4", "4:8T"])
        >>> [str(d.pattern) for d in found.diversities], found.block
        (['50%', '2:4', '4:8T'], 8)
    """
    started = time.perf_counter()
    meter = Meter(patterns, scores, sample=sample, seed=seed, threads=threads)
    pictures: list[Picture] = []
    with open_layers(model, choice) as opened:
        pictured = _pictured(opened.layers, show)

        def draw(layer: LayerRetention, masks: list[Mask]) -> None:
            if layer.name in pictured:
                pictures.extend(_picture(layer, mask) for mask in masks)

        kept = measure_all(opened, meter, progress, draw)
    block = _block(meter.patterns)
    counted = _with_unstructured(meter.patterns)
    return Study(
        retention=kept,
        block=block,
        diversities=tuple(diversity(pattern, (block, block)) for pattern in counted),
        paper=tuple(diversity(pattern, (block, block), "paper") for pattern in counted),
        steps=_steps(meter.patterns, seed),
        pictures=tuple(pictures),
        seconds=time.perf_counter() - started,
    )


def _pictured(layers: Sequence[Layer], show: Sequence[str]) -> set[str]:
    names = [layer.name for layer in layers]
    if not show:
        return {names[i] for i in (0, len(names) // 2, len(names) - 1)} if names else set()
    chosen: list[str] = []
    for pattern in show:
        predicate = matcher(pattern, "show")
        matched = [name for name in names if predicate(name)]
        if not matched:
            raise SelectionError(
                f"show: {pattern!r} matches none of the {len(names)} analysed layers, such as "
                f"{', '.join(names[:3]) or '(there is none)'}; give other names"
            )
        chosen += matched
    return set(list(dict.fromkeys(chosen))[:MOST_PICTURED])


def _picture(layer: LayerRetention, mask: Mask) -> Picture:
    m = 1 if mask.pattern.structure == "unstructured" else mask.pattern.m
    side = -(-WINDOW // m) * m
    corner = mask.tensor[0, :side, :side].numpy().copy()
    return Picture(layer.name, mask.pattern, corner, layer.sampled)


def _block(patterns: Sequence[Pattern]) -> int:
    """Side of a block that whole tiles fill, the paper's 8 where that does."""
    side = tile_side(patterns)
    return 8 if 8 % side == 0 else side


def _with_unstructured(patterns: Sequence[Pattern]) -> list[Pattern]:
    densities = [
        Pattern(p.n, p.m, "unstructured")
        for p in patterns
        if 1_000_000 % p.m == 0  # other densities have no percentage of four decimals
    ]
    structured = [p for p in patterns if p.structure != "unstructured"]
    return list(dict.fromkeys([*densities, *structured]))


def _steps(patterns: Sequence[Pattern], seed: int) -> tuple[Step, ...]:
    pairs = dict.fromkeys((p.n, p.m) for p in patterns if p.structure != "unstructured")
    steps = []
    for n, m in pairs:
        found = transition(n, m)
        drawn = tuple(
            simulate(rho, Pattern(n, m), draws=DRAWS, seed=seed)
            for rho in (found.low, found.middle, found.high)
        )
        steps.append(Step(found, drawn))
    return tuple(steps)
