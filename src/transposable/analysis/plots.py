"""The pictures of a report, as SVG and PNG; the only module that imports matplotlib."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from transposable.analysis.optional import need
from transposable.analysis.retention import Retention
from transposable.analysis.study import Picture, Step, Study
from transposable.feasibility import feasibility
from transposable.pattern import Pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too light for white paper; markers and line
# styles say the same once more.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333")
_LINES: Final = ("-", "--", "-.", ":")
_MARKERS: Final = {"row": "o", "transposable": "D", "sequential": "s", "unstructured": "^"}
_INK: Final = "#222222"
_GRID: Final = "#DDDDDD"
_KEPT: Final = "#1F4E79"
_PRUNED: Final = "#E6E6E6"
_HOLDS: Final = "#0072B2"
_BROKEN: Final = "#C43C00"

WIDTH: Final = 4.3
"""Inches: what a phone shows at nearly full size, and half a desktop's page."""

MOST_POINTS: Final = 150
"""More layers than this are drawn as ranges and medians, not one by one."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished picture: its name, what it shows in words, and its bytes."""

    name: str
    alt: str
    svg: bytes
    png: bytes


def check() -> None:
    """Raise DependencyError if matplotlib is missing, before any work is done."""
    need("matplotlib.figure", "plots")


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
    figure, axes = _axes(height=0.95 + 0.46 * len(rows))
    for place, pattern in enumerate(rows):
        style = _style(rows, pattern)
        values = _values(found, pattern)
        total = found.total(pattern).relative
        axes.axhline(place, color=_GRID, lw=0.8, zorder=0)
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
                color=_INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
                zorder=4,
            )
    axes.set_yticks(range(len(rows)), [str(pattern) for pattern in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.45, -0.75)
    axes.set_xlabel("kept, % of unstructured")
    axes.margins(x=0.08)
    _percent(axes.xaxis)
    what = (
        "thick bar: 5 to 95 % of the layers, thin: all"
        if len(found.layers) > MOST_POINTS
        else "strokes: layers, marker: whole model"
    )
    axes.set_title(what, loc="left", fontsize=10.5, color=_INK)
    texts = [f"{p}: {_text(found.total(p).relative)}" for p in rows]
    return _drawing("retention", f"Kept of unstructured, by pattern: {', '.join(texts)}.", figure)


def retention_by_layer(found: Retention) -> Drawing:
    """One line for each pattern over the layers, in the model's order."""
    figure, axes = _axes(height=3.7)
    count = len(found.layers)
    width = -(-count // MOST_POINTS)
    for pattern in found.patterns:
        style = _style(found.patterns, pattern)
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
    axes.xaxis.get_major_locator().set_params(integer=True)
    if count == 1:
        axes.set_xlim(0.5, 1.5)
        axes.set_xticks([1])
    _percent(axes.yaxis)
    _legend(axes, len(found.patterns))
    return _drawing("layers", "Kept of unstructured in each layer, one line a pattern.", figure)


def diversities(found: Study) -> Drawing:
    """How many masks each pattern allows: exact, and by the paper's form where that differs."""
    rows = found.diversities
    figure, axes = _axes(height=1.2 + 0.42 * len(rows))
    patterns = [one.pattern for one in rows]
    for place, (exact, paper) in enumerate(zip(rows, found.paper, strict=True)):
        axes.axhline(place, color=_GRID, lw=0.8, zorder=0)
        style = _style(patterns, exact.pattern)
        differs = abs(paper.log10 - exact.log10) > max(1e-6, exact.error)
        if differs:
            axes.plot([exact.log10, paper.log10], [place] * 2, color=_INK, lw=0.9, ls=":")
            axes.plot(paper.log10, place, marker="o", ms=9, mfc="white", mec=_INK, mew=1.4, ls="")
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
            color=_INK,
        )
    if any(d.pattern.transposable for d in rows):
        axes.plot([], [], marker="o", ms=9, mfc="white", mec=_INK, mew=1.4, ls="", label="paper's form")
        axes.plot([], [], marker="D", ms=8, color=_INK, ls="", label="exact")
        _legend(axes, 2)
    axes.set_yticks(range(len(rows)), [str(pattern) for pattern in patterns])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.14)
    side = found.block
    axes.set_xlabel(f"log10 of the number of masks of a block of {side} x {side}")
    texts = [f"{d.pattern}: 10^{d.log10:.2f}" for d in rows]
    return _drawing("diversity", f"Masks of a block: {', '.join(texts)}.", figure)


def tradeoff(found: Study) -> Drawing:
    """What is kept against the freedom of the mask."""
    figure, axes = _axes(height=3.5)
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
        style = _style(patterns, pattern)
        axes.plot(bits, value, marker=style["marker"], ms=9, color=style["color"], ls="")
    axes.margins(x=0.16, y=0.16)
    axes.set_xlabel("freedom of the mask, bits a weight (exact)")
    axes.set_ylabel("kept, % of unstructured")
    _percent(axes.yaxis)
    _labels(figure, axes, points)
    return _drawing(
        "tradeoff", "What each pattern keeps against the number of its masks, in bits a weight.", figure
    )


def feasibility_curves(steps: Sequence[Step]) -> Drawing:
    """P against the share of zeros, with drawn groups where it steps."""
    figure, axes = _axes(height=3.6)
    shares = np.linspace(0, 1, 201)
    names = [f"{step.transition.n}:{step.transition.m}" for step in steps]
    for number, step in enumerate(steps):
        n, m = step.transition.n, step.transition.m
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(
            shares,
            [feasibility(float(rho), n, m) for rho in shares],
            color=colour,
            ls=_LINES[number % len(_LINES)],
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
    axes.axhline(0.5, color=_GRID, lw=1, zorder=0)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("share of zeros, spread at random")
    axes.set_ylabel("P(a group satisfies N:M)")
    _legend(axes, len(steps))
    return _drawing(
        "feasibility",
        f"Probability that a random group satisfies {', '.join(names)}, against the zeros.",
        figure,
    )


def mask_picture(picture: Picture) -> bytes:
    """The corner of a mask as PNG: kept weights dark; each line of each tile marked.

    A dot at the end of a row (below a column) of a tile means that it keeps at most N, a cross that
    it keeps more.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    kept = picture.kept
    rows, cols = kept.shape
    n, m = picture.pattern.n, picture.pattern.m
    marked = picture.pattern.structure != "unstructured"
    step = m if marked else max(rows, cols)
    gap = 1.15 if marked else 0.0  # where the marks of a tile stand

    def place(index: int) -> float:
        return index + gap * (index // step)

    width, height = place(cols - 1) + 1 + gap, place(rows - 1) + 1 + gap
    figure, axes = _axes(width=2.3, height=2.3 * height / width, bare=True)
    squares: dict[bool, list[Rectangle]] = {True: [], False: []}
    for i in range(rows):
        for j in range(cols):
            squares[bool(kept[i, j])].append(
                Rectangle((place(j) + 0.06, place(i) + 0.06), 0.88, 0.88)
            )
    for keeps, found in squares.items():
        colour = _KEPT if keeps else _PRUNED
        axes.add_collection(PatchCollection(found, facecolor=colour, edgecolor="none"))
    if marked:
        holds: list[tuple[float, float]] = []
        broken: list[tuple[float, float]] = []
        for top in range(0, rows, m):
            for left in range(0, cols, m):
                tile = kept[top : top + m, left : left + m]
                right = place(left) + tile.shape[1] + gap / 2
                below = place(top) + tile.shape[0] + gap / 2
                for i, count in enumerate(tile.sum(1)):
                    (broken if count > n else holds).append((right, place(top) + i + 0.5))
                for j, count in enumerate(tile.sum(0)):
                    (broken if count > n else holds).append((place(left) + j + 0.5, below))
        for marks, marker, size, colour in (
            (holds, "o", 0.42, _HOLDS),
            (broken, "x", 0.72, _BROKEN),
        ):
            if marks:
                # In points: the picture is 2.3 inches for its width in cells.
                points = size * 2.3 * 72 / width
                axes.plot(
                    *zip(*marks, strict=True),
                    ls="",
                    marker=marker,
                    ms=points,
                    mew=points * 0.28 if marker == "x" else 0,
                    color=colour,
                )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    return _bytes(figure, "png", dpi=220)


# ---- what they share ----------------------------------------------------------------------------


def _axes(
    *, width: float = WIDTH, height: float, bare: bool = False
) -> tuple[Figure, Axes]:
    """A figure without pyplot: no global state, no back end of the user's is changed."""
    figure = need("matplotlib.figure", "plots").Figure(
        figsize=(width, height), layout=None if bare else "constrained", facecolor="white"
    )
    if bare:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        return figure, axes
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", color=_GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10.5, colors=_INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_size(11)
        axis.label.set_color(_INK)
    return figure, axes


def _style(patterns: Sequence[Pattern], pattern: Pattern) -> dict[str, str]:
    """The same pattern looks the same in every plot of a report."""
    if pattern.structure == "unstructured":
        return {"color": _COLOURS[-1], "ls": ":", "marker": _MARKERS["unstructured"]}
    others = [p for p in patterns if p.structure != "unstructured"]
    place = others.index(pattern)
    return {
        "color": _COLOURS[place % (len(_COLOURS) - 1)],
        "ls": _LINES[place // (len(_COLOURS) - 1) % len(_LINES)],
        "marker": _MARKERS[pattern.structure],
    }


def _values(found: Retention, pattern: Pattern) -> list[float]:
    index = found.patterns.index(pattern)
    values = (layer.kept[index].relative for layer in found.layers)
    return [value for value in values if value is not None]


def _legend(axes: Axes, entries: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=min(entries, 5),
        frameon=False,
        fontsize=10.5,
        labelcolor=_INK,
        borderaxespad=0.1,
        columnspacing=0.9,
        handlelength=1.5,
        handletextpad=0.4,
    )


def _labels(figure: Figure, axes: Axes, points: Iterable[tuple[float, float, Pattern]]) -> None:
    """Names beside points, each at the first place where it covers no other."""
    points = list(points)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)  # it knows how large a text is
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes: list[Any] = []
    at = [axes.transData.transform((x, y)) for x, y, _ in points]
    for x, y, pattern in points:
        for dx, dy, ha, va in (
            (8, 0, "left", "center"),
            (-8, 0, "right", "center"),
            (0, 8, "center", "bottom"),
            (0, -8, "center", "top"),
            (8, 10, "left", "bottom"),
            (-8, -10, "right", "top"),
        ):
            label = axes.annotate(
                str(pattern),
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=10.5,
                color=_INK,
            )
            box = label.get_window_extent(renderer)
            clear = not any(box.overlaps(other) for other in boxes)
            inside = axes.get_window_extent(renderer)
            clear &= inside.x0 <= box.x0 and box.x1 <= inside.x1
            clear &= not any(box.padded(3).contains(*point) for point in at)
            if clear:
                break
            if (dx, dy) != (-8, -10):
                label.remove()
        boxes.append(box)


def _percent(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def _drawing(name: str, alt: str, figure: Figure) -> Drawing:
    return Drawing(name, alt, _bytes(figure, "svg"), _bytes(figure, "png", dpi=200))


def _bytes(figure: Figure, kind: str, dpi: int = 100) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Neither a date nor random ids: the same figures give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "transposable", "svg.fonttype": "path"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
