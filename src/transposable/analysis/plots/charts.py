"""The plots of a report: what is kept, how many masks there are, feasibility."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import numpy as np

from transposable.analysis.plots.style import (
    COLOURS,
    GRID,
    INK,
    LINES,
    Drawing,
    in_percent,
    label_points,
    legend,
    new_axes,
    style_of,
)
from transposable.analysis.results import Retention
from transposable.analysis.study import Step, Study
from transposable.feasibility import feasibility
from transposable.pattern import Pattern

MOST_POINTS: Final = 150
"""More layers than this are drawn as ranges and medians, not one by one."""


def draw_all(found: Study) -> list[Drawing]:
    """The plots of a study that has layers: retention, layers, tradeoff; and the others always.

    Raises:
        DependencyError: if matplotlib is missing.
    """
    drawings = []
    if found.retention.layers:
        drawings += [retention_by_pattern(found.retention), retention_by_layer(found.retention)]
        if any(d.pattern in found.retention.patterns for d in found.diversities):
            drawings.append(tradeoff(found))
    drawings.append(diversities(found))
    if found.steps:
        drawings.append(feasibility_curves(found.steps))
    return drawings


def retention_by_pattern(found: Retention) -> Drawing:
    """One row for each pattern: the layers, and the whole model."""
    rows = list(found.patterns)
    figure, axes = new_axes(height=0.95 + 0.46 * len(rows))
    for place, pattern in enumerate(rows):
        style = style_of(rows, pattern)
        values = _values(found, pattern)
        total = found.total(pattern).relative
        axes.axhline(place, color=GRID, lw=0.8, zorder=0)
        if len(values) > MOST_POINTS:
            low, high = np.percentile(values, (5, 95))
            axes.plot([min(values), max(values)], [place] * 2, color=style["color"], lw=1.2)
            axes.plot([low, high], [place] * 2, color=style["color"], lw=5, alpha=0.5)
        else:
            axes.plot(
                values,
                [place] * len(values),
                ls="",
                marker="|",
                ms=9,
                mew=1.1,
                color=style["color"],
                alpha=0.65,
            )
        if total is not None:
            axes.plot(
                total,
                place,
                marker=style["marker"],
                ms=9,
                color=style["color"],
                mec="white",
                mew=1.2,
                zorder=3,
            )
            axes.annotate(
                f"{100 * total:.1f}",
                (total, place),
                (0, 8),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=10.5,
                color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
                zorder=4,
            )
    axes.set_yticks(range(len(rows)), [str(pattern) for pattern in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.45, -0.75)
    axes.set_xlabel("kept, % of unstructured")
    axes.margins(x=0.08)
    in_percent(axes.xaxis)
    what = (
        "thick bar: 5 to 95 % of the layers, thin: all"
        if len(found.layers) > MOST_POINTS
        else "strokes: layers, marker: whole model"
    )
    axes.set_title(what, loc="left", fontsize=10.5, color=INK)
    texts = [f"{p}: {_text(found.total(p).relative)}" for p in rows]
    return Drawing("retention", f"Kept of unstructured, by pattern: {', '.join(texts)}.", figure)


def retention_by_layer(found: Retention) -> Drawing:
    """One line for each pattern over the layers, in the model's order."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes(height=3.7)
    count = len(found.layers)
    width = -(-count // MOST_POINTS)
    for pattern in found.patterns:
        style = style_of(found.patterns, pattern)
        index = found.patterns.index(pattern)
        places, values = [], []
        for start in range(0, count, width):
            known = [
                layer.kept[index].relative
                for layer in found.layers[start : start + width]
                if layer.kept[index].relative is not None
            ]
            if known:
                places.append(start + (min(width, count - start) + 1) / 2)
                values.append(statistics.median(v for v in known if v is not None))
        few = len(places) <= 40
        axes.plot(
            places,
            values,
            label=str(pattern),
            color=style["color"],
            ls=style["ls"],
            lw=1.3,
            marker=style["marker"] if few else None,
            ms=4.5,
        )
    axes.set_xlabel("layer, in the model's order" + (f" (medians of {width})" if width > 1 else ""))
    axes.set_ylabel("kept, % of unstructured")
    axes.grid(True, axis="y", color=GRID, lw=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if count == 1:
        axes.set_xlim(0.5, 1.5)
        axes.set_xticks([1])
    in_percent(axes.yaxis)
    legend(axes, len(found.patterns))
    return Drawing("layers", "Kept of unstructured in each layer, one line a pattern.", figure)


def diversities(found: Study) -> Drawing:
    """How many masks each pattern allows: exact, and by the paper's form where that differs."""
    rows = found.diversities
    figure, axes = new_axes(height=1.2 + 0.42 * len(rows))
    patterns = [one.pattern for one in rows]
    for place, (exact, paper) in enumerate(zip(rows, found.paper, strict=True)):
        axes.axhline(place, color=GRID, lw=0.8, zorder=0)
        style = style_of(patterns, exact.pattern)
        differs = abs(paper.log10 - exact.log10) > max(1e-6, exact.error)
        if differs:
            axes.plot([exact.log10, paper.log10], [place] * 2, color=INK, lw=0.9, ls=":")
            axes.plot(paper.log10, place, marker="o", ms=9, mfc="white", mec=INK, mew=1.4, ls="")
        axes.plot(
            exact.log10, place, marker=style["marker"], ms=9, color=style["color"], ls="", zorder=3
        )
        right = not differs or exact.log10 > paper.log10
        axes.annotate(
            f"{exact.log10:.1f}",
            (exact.log10, place),
            (9 if right else -9, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=10.5,
            color=INK,
        )
    if any(d.pattern.transposable for d in rows):
        axes.plot(
            [], [], marker="o", ms=9, mfc="white", mec=INK, mew=1.4, ls="", label="paper's form"
        )
        axes.plot([], [], marker="D", ms=8, color=INK, ls="", label="exact")
        legend(axes, 2)
    axes.set_yticks(range(len(rows)), [str(pattern) for pattern in patterns])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.14)
    side = found.block
    axes.set_xlabel(f"log10 of the number of masks of a block of {side} x {side}")
    texts = [f"{d.pattern}: 10^{d.log10:.2f}" for d in rows]
    return Drawing("diversity", f"Masks of a block: {', '.join(texts)}.", figure)


def tradeoff(found: Study) -> Drawing:
    """What is kept against the freedom of the mask."""
    figure, axes = new_axes(height=3.5)
    kept = found.retention
    points = []
    for one in found.diversities:
        measured = one.pattern in kept.patterns
        value = kept.total(one.pattern).relative if measured else None
        if one.pattern.structure == "unstructured":
            value = 1.0
        if value is not None:
            points.append((one.bits_per_weight, value, one.pattern))
    patterns = [pattern for *_, pattern in points]
    for bits, value, pattern in points:
        style = style_of(patterns, pattern)
        axes.plot(bits, value, marker=style["marker"], ms=9, color=style["color"], ls="")
    axes.margins(x=0.16, y=0.16)
    axes.set_xlabel("freedom of the mask, bits a weight (exact)")
    axes.set_ylabel("kept, % of unstructured")
    in_percent(axes.yaxis)
    label_points(figure, axes, points)
    return Drawing(
        "tradeoff",
        "What each pattern keeps against the number of its masks, in bits a weight.",
        figure,
    )


def feasibility_curves(steps: Sequence[Step]) -> Drawing:
    """P against the share of zeros, with drawn groups where it steps."""
    figure, axes = new_axes(height=3.6)
    shares = np.linspace(0, 1, 201)
    names = [f"{step.transition.n}:{step.transition.m}" for step in steps]
    for number, step in enumerate(steps):
        n, m = step.transition.n, step.transition.m
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            shares,
            [feasibility(float(rho), n, m) for rho in shares],
            color=colour,
            ls=LINES[number % len(LINES)],
            lw=1.7,
            label=names[number],
        )
        axes.errorbar(
            [drawn.rho for drawn in step.drawn],
            [drawn.estimate for drawn in step.drawn],
            yerr=[2 * drawn.standard_error for drawn in step.drawn],
            ls="",
            marker="o",
            ms=5,
            mfc="white",
            color=colour,
        )
    axes.axhline(0.5, color=GRID, lw=1, zorder=0)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("share of zeros, spread at random")
    axes.set_ylabel("P(a group satisfies N:M)")
    legend(axes, len(steps))
    return Drawing(
        "feasibility",
        f"Probability that a random group satisfies {', '.join(names)}, against the zeros.",
        figure,
    )


def _values(found: Retention, pattern: Pattern) -> list[float]:
    index = found.patterns.index(pattern)
    values = (layer.kept[index].relative for layer in found.layers)
    return [value for value in values if value is not None]


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"
