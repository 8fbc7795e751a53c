"""Two panels for a training experiment: the score of every run, and a curve over the epochs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.tables import Score, by_config

# Okabe-Ito colours by pattern, told apart by marker as well; the schedule by the line.
COLOURS = {None: "#555555", "2:4": "#0072B2", "4:8T": "#D55E00", "2:4T": "#009E73"}
MARKERS = {None: "s", "2:4": "o", "4:8T": "D", "2:4T": "^"}
LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Panels:
    """What the two panels show, and the distances to a reference's mean that are targets.

    With a ``relative`` score the distances are shares of that mean.
    """

    score: Score
    score_label: str
    curve: str
    curve_label: str
    epoch_label: str = "epoch"
    curve_scale: float = 1.0
    targets: Sequence[tuple[float, str]] = ()
    logarithmic: bool = False


def drawing(panels: Panels) -> Callable[[dict[str, Any], Path], None]:
    """A function that draws a document's figure into a file."""
    return lambda document, file: draw(document, file, panels)


def draw(document: dict[str, Any], file: Path, panels: Panels) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    grouped = by_config(document)
    height = max(3.2, 1.2 + 0.42 * len(grouped))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, height), gridspec_kw={"width_ratios": (1.15, 1)}
    )
    draw_scores(left, grouped, panels)
    draw_curves(right, grouped, panels)
    figure.tight_layout()
    figure.savefig(file, dpi=130, facecolor="white")
    plt.close(figure)


def draw_scores(panel: Any, grouped: dict[str, list[dict[str, Any]]], panels: Panels) -> None:
    """A row for each configuration, and its reference's mean and targets across its row."""
    values = {c: [panels.score.of(run) for run in runs] for c, runs in grouped.items()}
    for reference, rows in _rows_by_reference(list(grouped), panels.score).items():
        if reference not in values:
            continue
        span = (rows[0] - 0.5, rows[-1] + 0.5)
        mean = statistics.fmean(values[reference])
        panel.vlines(mean, *span, color=COLOURS[None], linewidth=1)
        for distance, text in panels.targets:
            target = mean + (distance * mean if panels.score.relative else distance)
            panel.vlines(target, *span, color="#999999", linewidth=1, linestyle="--")
            panel.annotate(
                text,
                (target, span[1]),
                xytext=(-3, 0),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=9,
                color="#555555",
            )
    for place, (config, runs) in enumerate(grouped.items()):
        pattern = runs[0]["settings"]["pattern"]
        style = {"color": COLOURS[pattern], "marker": MARKERS[pattern], "linestyle": ""}
        mean = statistics.fmean(values[config])
        panel.axhline(place, color="#dddddd", linewidth=0.8, zorder=0)
        if len(values[config]) > 1:
            panel.plot(values[config], [place] * len(runs), markersize=5, alpha=0.55, **style)
        panel.plot(mean, place, markersize=9, **style)
        panel.annotate(
            f"{mean:.{panels.score.digits}f}",
            (mean, place - 0.2),
            ha="center",
            va="bottom",
            fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    panel.set_yticks(range(len(grouped)), list(grouped))
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(len(grouped) - 0.4, -0.75)
    panel.set_xlabel(panels.score_label)
    panel.margins(x=0.12)


def _rows_by_reference(configs: Sequence[str], score: Score) -> dict[str, list[int]]:
    """The rows that are compared with each reference."""
    rows: dict[str, list[int]] = {}
    for row, config in enumerate(configs):
        rows.setdefault(score.references[config], []).append(row)
    return rows


def draw_curves(panel: Any, grouped: dict[str, list[dict[str, Any]]], panels: Panels) -> None:
    """Means over the seeds, epoch by epoch."""
    drawn: dict[Any, int] = {}
    for config, runs in grouped.items():
        pattern = runs[0]["settings"]["pattern"]
        lines = [run[panels.curve] for run in runs if panels.curve in run]
        if not lines:
            continue
        number = drawn[pattern] = drawn.get(pattern, -1) + 1
        means = [panels.curve_scale * statistics.fmean(at) for at in zip(*lines, strict=True)]
        panel.plot(
            range(1, len(means) + 1),
            means,
            color=COLOURS[pattern],
            marker=MARKERS[pattern],
            markersize=4,
            linestyle=LINES[number % len(LINES)],
            label=config,
        )
    if panels.logarithmic:
        panel.set_yscale("log")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel(panels.epoch_label)
    panel.set_ylabel(panels.curve_label)
    panel.legend(frameon=False, fontsize=9)
