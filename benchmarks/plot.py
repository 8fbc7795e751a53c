"""The picture: time against error of every solver at one pattern."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from benchmarks import machine, tables

# Okabe and Ito's palette, which colour-blind readers can tell apart; shape says it once more.
_OURS: Final = "#D55E00"
_EXACT: Final = "#0072B2"
_APPROXIMATE: Final = "#007A5A"
_INK: Final = "#333333"
_BAND: Final = "#F1F1F1"

_ZERO_ERROR: Final = 1e-6
"""Up to this mean error a solver stands on the line "optimal"."""

_PLACES: Final = (
    (12, 0, "left", "center"),
    (-12, 0, "right", "center"),
    (0, 12, "center", "bottom"),
    (0, -12, "center", "top"),
    (14, 14, "left", "bottom"),
    (-14, 14, "right", "bottom"),
    (14, -14, "left", "top"),
    (-14, -14, "right", "top"),
    (0, 44, "center", "bottom"),
)


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the PNG.

    Raises:
        ValueError: if the results hold no peers.
    """
    pattern = tables.featured(results)
    if pattern is None:
        raise ValueError("plot: the results hold no peers; run with the part 'peers'")
    rows = [row for row in results["patterns"][pattern]["peers"] if row["valid"]]
    figure, axes = plt.subplots(figsize=(9, 5.4), dpi=160)
    errors = [row["mean_error"] for row in rows if row["mean_error"] > _ZERO_ERROR]
    lowest = min(errors, default=1e-3)
    highest = max((row["worst_error"] for row in rows), default=1.0) * 2
    decades = max(1.0, math.log10(max(highest, lowest) / lowest))
    zero = lowest / 10 ** (0.38 * decades)  # where error 0 is drawn, below the logarithmic part
    for row in rows:
        _point(axes, row, zero)
    _dress(axes, results, pattern, zero, lowest, zero / 10 ** (0.22 * decades))
    _legend(axes, rows)
    _foot(figure, results)
    figure.subplots_adjust(left=0.105, right=0.985, top=0.93, bottom=0.175)
    _labels(figure, axes, sorted(rows, key=lambda row: row["seconds_per_matrix"]), zero)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _style(row: dict[str, Any]) -> tuple[str, str]:
    if row["name"] == "exact":
        return _OURS, "*"
    return (_EXACT, "o") if row["exact"] else (_APPROXIMATE, "s")


def _height(row: dict[str, Any], zero: float) -> float:
    error: float = row["mean_error"]
    return error if error > _ZERO_ERROR else zero


def _point(axes: Axes, row: dict[str, Any], zero: float) -> None:
    colour, marker = _style(row)
    x, y = row["seconds_per_matrix"], _height(row, zero)
    if row["worst_error"] > _ZERO_ERROR:
        axes.plot([x, x], [y, row["worst_error"]], color=colour, lw=1.6)
        axes.plot([x], [row["worst_error"]], color=colour, marker="_", ms=10, mew=1.8)
    size = 17 if marker == "*" else 9
    fill = colour if row["exactly_n"] == 1 else "white"
    axes.plot([x], [y], color=colour, marker=marker, ms=size, ls="none", mfc=fill, mew=1.8)


def _places(row: dict[str, Any]) -> list[tuple[int, int, str, str]]:
    """Where to try the label; the exact peers stand close together and leave the right to ours."""
    if row["exact"] and row["name"] != "exact":
        return [*_PLACES[1:], _PLACES[0]]
    return list(_PLACES)


def _labels(figure: Figure, axes: Axes, rows: list[dict[str, Any]], zero: float) -> None:
    """Names beside the points, each at the first place that covers no point, bar or label."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    legend = axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent(renderer)]
    for row in rows:
        x, y = row["seconds_per_matrix"], _height(row, zero)
        left, bottom = axes.transData.transform((x, y))
        top = axes.transData.transform((x, max(y, row["worst_error"])))[1]
        taken.append(Bbox([[left - 14, bottom - 14], [left + 14, top + 10]]))
    for row in rows:
        colour, _ = _style(row)
        x, y = row["seconds_per_matrix"], _height(row, zero)
        best: tuple[int, Any, Bbox] | None = None
        for dx, dy, ha, va in _places(row):
            label = axes.annotate(
                f"{row['label']}\n{tables.seconds(x)}",
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=11,
                color=colour,
                fontweight="bold" if row["name"] == "exact" else "normal",
                linespacing=1.15,
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8} if dy > 30 else None,
            )
            ground = _BAND if y == zero else "white"
            label.set_path_effects([withStroke(linewidth=3, foreground=ground)])  # over the grid
            box = label.get_window_extent(renderer)
            outside = not (frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0)
            clashes = sum(box.padded(5).overlaps(other) for other in taken) + 10 * outside
            if best is None or clashes < best[0]:
                if best is not None:
                    best[1].remove()
                best = clashes, label, box
            else:
                label.remove()
            if best[0] == 0:
                break
        assert best is not None
        taken.append(best[2])


def _dress(
    axes: Axes, results: dict[str, Any], pattern: str, zero: float, lowest: float, bottom: float
) -> None:
    size = results["size"]
    axes.set_xscale("log")
    axes.set_yscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left / 1.6, right * 4)
    top = axes.get_ylim()[1] * 1.3
    axes.set_ylim(bottom, top)
    ticks = [10.0**k for k in range(-6, 1) if lowest / 3 < 10.0**k < top]
    axes.set_yticks([zero, *ticks])
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "optimal" if value <= zero * 1.01 else f"{100 * value:g} %")
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.axhspan(bottom, zero * (lowest / zero) ** 0.7, color=_BAND, zorder=0)
    axes.grid(True, which="major", color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11, colors=_INK)
    axes.set_xlabel(
        f"time for one {size}x{size} float32 matrix, one thread", fontsize=11.5, color=_INK
    )
    axes.set_ylabel("kept magnitude short of optimal", fontsize=11.5, color=_INK)
    nm = pattern.removesuffix("T")
    axes.set_title(f"Transposable {nm} masks: time and error", fontsize=13, color=_INK, loc="left")


def _legend(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """What the bar and the fill mean, in ink: colours are named by the labels."""
    entries = []
    if any(row["worst_error"] > _ZERO_ERROR for row in rows):
        mean = Line2D([], [], color=_APPROXIMATE, marker="s", ms=8, lw=0)
        entries.append((mean, "mean over tiles"))
        bar = Line2D([], [], color=_APPROXIMATE, marker="_", ms=10, mew=1.8, lw=0)
        entries.append((bar, "worst tile"))
    if any(row["exactly_n"] < 1 for row in rows):
        hollow = Line2D([], [], color=_APPROXIMATE, marker="s", mfc="white", mew=1.8, ms=8, lw=0)
        entries.append((hollow, "hollow: some tiles keep\nfewer than N in a line"))
    if entries:
        handles, names = zip(*entries, strict=True)
        axes.legend(handles, names, loc="upper right", fontsize=10, labelcolor=_INK, frameon=False)


def _foot(figure: Figure, results: dict[str, Any]) -> None:
    text = machine.sentence(results["machine"])
    if results["quick"]:
        text = f"quick run, figures mean nothing; {text}"
    figure.text(0.985, 0.015, text, ha="right", fontsize=8.5, color="#666666")


def _short(value: float) -> str:
    """An axis tick: "10 ms", "1 s", "1,000 s"."""
    return f"{value * 1e3:g} ms" if value < 1 else f"{value:,.0f} s"
