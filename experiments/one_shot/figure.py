"""figure.png of the one-shot experiment, drawn from result.json.

python -m experiments.one_shot.figure
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
ORDER = ("dense", "50%", "4:8", "2:4", "4:8T", "2:4T")
# Okabe-Ito colours, told apart by shape as well: reference, forward only, both passes.
STYLE = {
    "dense": ("#555555", "s"),
    "50%": ("#555555", "s"),
    "4:8": ("#0072B2", "o"),
    "2:4": ("#0072B2", "o"),
    "4:8T": ("#D55E00", "D"),
    "2:4T": ("#D55E00", "D"),
}
LEGEND = {"s": "no N:M structure", "o": "N:M, forward only", "D": "N:MT, both passes"}
LIMITS = {"resnet": (0, 100), "all-MiniLM-L6-v2": (80, 88)}


def draw(document: dict[str, Any], file: Path) -> None:
    """One panel for each network: score by pattern."""
    results = document["results"]
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, len(results), figsize=(12, 3.4), sharey=True)
    for panel, (name, rows) in zip(panels, results.items(), strict=True):
        scores = {row["pattern"]: row["score"] for row in rows}
        low, high = LIMITS.get(name, LIMITS["resnet"])
        for place, pattern in enumerate(ORDER):
            colour, marker = STYLE[pattern]
            if low == 0:  # a stem's length means something only from zero
                panel.hlines(place, low, scores[pattern], color=colour, linewidth=1.2, alpha=0.45)
            else:
                panel.axhline(place, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
            panel.plot(scores[pattern], place, marker=marker, color=colour, markersize=8)
            panel.annotate(
                f"{scores[pattern]:.1f}",
                (scores[pattern], place),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
            )
        panel.set_xlim(low, high + 0.22 * (high - low))
        panel.set_xticks([low, (low + high) / 2, high])
        panel.set_ylim(len(ORDER) - 0.5, -0.5)
        panel.set_yticks(range(len(ORDER)), ORDER)
        panel.tick_params(axis="y", length=0)
        encoder = name == "all-MiniLM-L6-v2"
        panel.set_title("MiniLM-L6 (STS-B dev)" if encoder else f"{name} (CIFAR-10)", fontsize=11)
        panel.set_xlabel("Spearman x 100 (axis from 80)" if encoder else "top-1, %")
    handles = [
        plt.Line2D([], [], marker=marker, color=colour, linestyle="", markersize=8, label=text)
        for marker, text in LEGEND.items()
        for colour in [next(c for c, m in STYLE.values() if m == marker)]
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(file, dpi=130, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads((HERE / "result.json").read_text(encoding="utf-8")), HERE / "figure.png")
