"""Two panels: layer errors by method, and what conversion from unstructured sparsity costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"4:8": "#0072B2", "2:4": "#009E73", "4:8T": "#D55E00"}
MARKERS = {"4:8": "o", "2:4": "s", "4:8T": "D"}
TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def draw(document: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    wide = bool(document["conversion"])
    figure, panels = plt.subplots(1, 1 + wide, figsize=(13 if wide else 7.5, 5.2), squeeze=False)
    draw_errors(panels[0][0], document["tasks"])
    if wide:
        draw_conversion(panels[0][1], document["conversion"])
    figure.tight_layout()
    figure.savefig(file, dpi=130, facecolor="white")
    plt.close(figure)


def draw_errors(panel: Any, tasks: list[dict[str, Any]]) -> None:
    """How much of a layer's output is lost after each method, by task."""
    styles = (
        ("magnitude", "#999999", "v"),
        ("Wanda", "#56B4E9", "^"),
        ("SparseGPT", "#0072B2", "s"),
        ("AdaPrune as published", "#CC79A7", "P"),
        ("AdaPrune", "#D55E00", "D"),
        ("ALPS", "#009E73", "o"),
    )
    for config, colour, marker in styles:
        found = [
            (place, run["error"])
            for place, task in enumerate(tasks)
            for run in task["runs"]
            if run["config"] == config
        ]
        if found:
            places, errors = zip(*found, strict=True)
            panel.plot(errors, places, marker, color=colour, label=config, markersize=8)
    panel.set_yticks(range(len(tasks)), [f"{t['task']} {t['pattern']}" for t in tasks])
    panel.set_ylim(len(tasks) - 0.5, -0.5)
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("error of a layer's output, relative to its power")
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.4, 1.16), ncol=3)


def draw_conversion(panel: Any, runs: list[dict[str, Any]]) -> None:
    """Accuracy against the share of constraints that the unstructured network violates."""
    for pattern, colour in COLOURS.items():
        points = sorted(
            (100 * one["violated"], run["start"], one["masked"], one["adaprune"])
            for run in runs
            for one in run["converted"]
            if one["pattern"] == pattern
        )
        if not points:
            continue
        shares, starts, masked, fitted = zip(*points, strict=True)
        style = {"color": colour, "marker": MARKERS[pattern], "markersize": 7}
        panel.plot(shares, fitted, "-", label=f"{pattern}, AdaPrune", **style)
        panel.plot(shares, masked, ":", label=f"{pattern}, mask alone", fillstyle="none", **style)
        panel.plot(shares, starts, "_", color="#555555", markersize=15, markeredgewidth=2, zorder=1)
    panel.plot([], [], "_", color="#555555", markersize=15, label="before conversion")
    panel.set_xlabel("constraints violated before, %")
    panel.set_ylabel("top-1 after conversion, %")
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.legend(frameon=False, fontsize=9)
