"""The picture: time against error of every solver at one pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from benchmarks import machine, tables

# Okabe and Ito's palette, which colour-blind readers can tell apart; shape says it once more.
_OURS: Final = "#D55E00"
_EXACT: Final = "#0072B2"
_APPROXIMATE: Final = "#009E73"
_INK: Final = "#333333"

_WORST_FLOOR: Final = 1e-6


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the PNG.

    Raises:
        ValueError: if the results hold no peers.
    """
    pattern = tables.featured(results)
    if pattern is None:
        raise ValueError("plot: the results hold no peers; run with the part 'peers'")
    rows = [row for row in results["patterns"][pattern]["peers"] if row["valid"]]
    figure, axes = plt.subplots(figsize=(9, 5.2), dpi=160)
    errors = [row["mean_error"] for row in rows if row["mean_error"] > _WORST_FLOOR]
    lowest = min(errors, default=1e-3)
    zero = lowest / 12  # the line on which error 0 is drawn, below the logarithmic part
    placed: list[Any] = []
    for row in rows:
        _point(axes, row, zero)
    _dress(axes, results, pattern, zero, lowest)
    figure.tight_layout()
    for row in sorted(rows, key=lambda row: row["seconds_per_matrix"]):
        _label(axes, row, zero, placed)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _style(row: dict[str, Any]) -> tuple[str, str]:
    if row["name"] == "exact":
        return _OURS, "*"
    return (_EXACT, "o") if row["exact"] else (_APPROXIMATE, "s")


def _height(row: dict[str, Any], zero: float) -> float:
    error: float = row["mean_error"]
    return error if error > _WORST_FLOOR else zero


def _point(axes: Axes, row: dict[str, Any], zero: float) -> None:
    colour, marker = _style(row)
    x, y = row["seconds_per_matrix"], _height(row, zero)
    if row["worst_error"] > _WORST_FLOOR:
        axes.plot([x, x], [y, row["worst_error"]], color=colour, lw=1.5, alpha=0.7)
        axes.plot([x], [row["worst_error"]], color=colour, marker="_", ms=9, mew=1.5)
    axes.plot([x], [y], color=colour, marker=marker, ms=17 if marker == "*" else 9, ls="none")


def _label(axes: Axes, row: dict[str, Any], zero: float, placed: list[Any]) -> None:
    """The name beside its point: the first place that covers neither a label nor a point."""
    colour, _ = _style(row)
    x, y = row["seconds_per_matrix"], _height(row, zero)
    text = f"{row['label']}\n{tables.seconds(x)}"
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    points = [line.get_window_extent(renderer) for line in axes.get_lines()]
    best = None
    for dx, dy, ha, va in (
        (11, 0, "left", "center"),
        (0, 13, "center", "bottom"),
        (-11, 0, "right", "center"),
        (0, -13, "center", "top"),
        (0, 44, "center", "bottom"),
        (0, 75, "center", "bottom"),
    ):
        label = axes.annotate(
            text,
            (x, y),
            (dx, dy),
            textcoords="offset points",
            ha=ha,
            va=va,
            fontsize=10.5,
            color=colour,
            fontweight="bold" if row["name"] == "exact" else "normal",
            linespacing=1.15,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8} if dy > 20 else None,
        )
        box = label.get_window_extent(renderer)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1
        text_box = label.get_bbox_patch() or label
        clash = sum(box.overlaps(other) for other in placed)
        clash += sum(box.overlaps(other) for other in points if other.height + other.width > 0)
        if best is None or (clash + 10 * (not inside)) < best[0]:
            if best is not None:
                best[1].remove()
            best = (clash + 10 * (not inside), label, box)
        else:
            label.remove()
        if best[0] == 0:
            break
        del text_box
    assert best is not None
    placed.append(best[2])


def _dress(
    axes: Axes, results: dict[str, Any], pattern: str, zero: float, lowest: float
) -> None:
    size = results["size"]
    axes.set_xscale("log")
    axes.set_yscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left / 1.5, right * 4)
    axes.set_ylim(zero / 2.2, 1)
    ticks = [10.0**k for k in range(-6, 1) if 10.0**k > lowest / 4]
    axes.set_yticks([zero, *ticks])
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "optimal" if value <= zero * 1.01 else f"{100 * value:g} %")
    )
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tables.seconds(value)))
    axes.axhspan(zero / 2.2, lowest / 3.5, color="#F2F2F2", zorder=0)
    axes.grid(True, which="major", color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10.5, colors=_INK)
    axes.set_xlabel(f"time for one {size}x{size} matrix, one thread", fontsize=11.5, color=_INK)
    axes.set_ylabel("kept magnitude short of the optimum", fontsize=11.5, color=_INK)
    quick = "  (quick run: figures mean nothing)" if results["quick"] else ""
    axes.set_title(
        f"Transposable {pattern.removesuffix('T')} masks: mean error, bar up to the worst tile{quick}",
        fontsize=12.5,
        color=_INK,
        loc="left",
    )
    axes.text(
        1,
        -0.16,
        machine.sentence(results["machine"]),
        transform=axes.transAxes,
        ha="right",
        fontsize=8,
        color="#777777",
    )
