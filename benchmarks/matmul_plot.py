"""The picture: useful operations per second of every pattern under the machine's FMA peak."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from benchmarks import machine
from benchmarks.matmul_peers import DIRECTIONS, TITLES
from benchmarks.matmul_tables import dense_gflops, peak, sparse_gflops
from benchmarks.matmul_targets import density

# Okabe and Ito's palette, which colour-blind readers can tell apart; shape says it once more.
_STYLES: Final = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#007A5A", "^"),
    ("#9A4C80", "D"),
    ("#A66F00", "v"),
)
_INK: Final = "#333333"
_QUIET: Final = "#666666"
TOKENS: Final = 1024
"""The batch that is shown, or the largest one if it was not measured."""


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the PNG: the first section, a panel for each direction, a group for each layer."""
    section = results["sections"][0]
    tokens = TOKENS if TOKENS in section["tokens"] else max(section["tokens"])
    roof, roof_name = peak(section)
    figure, panels = plt.subplots(3, 1, figsize=(9, 9.6), dpi=160, sharex=True, sharey=True)
    for axes, direction in zip(panels, DIRECTIONS, strict=True):
        cases = [
            case
            for case in section["cases"]
            if case["direction"] == direction and case["tokens"] == tokens
        ]
        for place, case in enumerate(cases):
            _group(axes, place, case, section["patterns"])
        axes.axhline(roof, color=_INK, lw=1.4, ls=(0, (5, 3)))
        _dress(axes, cases)
        axes.set_title(TITLES[direction].replace("^T", "ᵀ"), fontsize=12, color=_INK, loc="left")
    panels[0].set_title(
        f"dashed: {roof_name}, {roof:.0f} GFLOP/s", fontsize=10.5, color=_INK, loc="right"
    )
    # Room above the roof for the number of a marker that touches it.
    panels[0].set_ylim(0, max(roof, panels[0].get_ylim()[1] / 1.05) * 1.16)
    panels[1].set_ylabel("GFLOP/s of kept weights", fontsize=11.5, color=_INK)
    panels[-1].set_xlabel("layer, in x out", fontsize=11.5, color=_INK)
    handles = _handles(section["patterns"])
    figure.legend(
        handles=handles,
        loc="upper center",
        ncols=len(handles),
        fontsize=10.5,
        labelcolor=_INK,
        frameon=False,
        bbox_to_anchor=(0.53, 0.962),
        handletextpad=0.3,
        columnspacing=1.4,
    )
    figure.suptitle(
        f"Useful work under the roof: {tokens:,} tokens, {section['title']}",
        fontsize=13.5,
        color=_INK,
        x=0.085,
        y=0.985,
        ha="left",
    )
    foot = machine.sentence(results["machine"])
    if results["quick"]:
        foot = f"quick run, figures mean nothing; {foot}"
    figure.text(
        0.085,
        0.03,
        "Number: time of the best dense product over ours. Thin line: up from what that product "
        "does\nof the kept weights in the same time (dense-equivalent), so its length is the gain.",
        fontsize=9.5,
        color=_QUIET,
    )
    figure.text(0.985, 0.008, foot, ha="right", fontsize=8.5, color=_QUIET)
    figure.subplots_adjust(left=0.085, right=0.985, top=0.885, bottom=0.125, hspace=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _group(axes: Axes, place: int, case: dict[str, Any], patterns: list[str]) -> None:
    dense = dense_gflops(case)
    axes.plot([place - 0.42, place + 0.42], [dense, dense], color=_INK, lw=2.2, zorder=2)
    for number, pattern in enumerate(patterns):
        colour, marker = _STYLES[number % len(_STYLES)]
        x = place + 0.72 * ((number + 0.5) / len(patterns) - 0.5)
        low, high = density(pattern) * dense, sparse_gflops(case, pattern)
        axes.plot([x, x], [low, high], color=colour, lw=1.5, zorder=3)
        axes.plot([x], [low], color=colour, marker="_", ms=8, mew=1.6, ls="none", zorder=3)
        fill = colour if density(pattern) == 0.5 else "white"
        axes.plot([x], [high], color=colour, marker=marker, ms=7.5, mfc=fill, mew=1.6, zorder=4)
        ratio = case["patterns"][pattern]["ratios"]["best"]["wall"]["median"]
        text = axes.annotate(
            f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}",
            (x, max(high, low)),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=colour,
            zorder=5,
        )
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _dress(axes: Axes, cases: list[dict[str, Any]]) -> None:
    axes.set_xticks(range(len(cases)), [f"{case['in']} x {case['out']}" for case in cases])
    axes.set_xlim(-0.5, len(cases) - 0.5)
    axes.grid(True, axis="y", color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11, colors=_INK)
    axes.tick_params(axis="x", length=0)


def _handles(patterns: list[str]) -> list[Line2D]:
    handles = []
    for number, pattern in enumerate(patterns):
        colour, marker = _STYLES[number % len(_STYLES)]
        fill = colour if density(pattern) == 0.5 else "white"
        handles.append(
            Line2D(
                [], [], color=colour, marker=marker, ms=8, lw=0, mfc=fill, mew=1.6, label=pattern
            )
        )
    handles.append(Line2D([], [], color=_INK, lw=2.2, label="best dense"))
    return handles
