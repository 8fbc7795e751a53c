"""docs/img/tile.png: one real 8x8 tile under plain 4:8 and under transposable 4:8T.

Needs the extras demo and plots and the model package (see the README): python docs/img/make_tile.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from safetensors.torch import load_file

import transposable
from transposable.demo.encoder import model_directory

LAYER = "encoder.layer.0.intermediate.dense.weight"
TOP, LEFT, N, M = 16, 8, 4, 8
INK, KEPT, CELL, PRUNED, WRONG = "#222222", "#0072B2", "#CFE6F5", "#9a9a9a", "#C43C00"


def panel(axes: Axes, tile: torch.Tensor, kept: torch.Tensor, title: str) -> None:
    """The tile with the area of each square proportional to |w|, and the counts at its margins."""
    largest = tile.max().item()
    for i in range(M):
        for j in range(M):
            keep = bool(kept[i, j])
            axes.add_patch(
                Rectangle((j, i), 1, 1, facecolor=CELL if keep else "white", edgecolor="#777777")
            )
            side = 0.86 * (tile[i, j].item() / largest) ** 0.5
            low = (1 - side) / 2
            axes.add_patch(
                Rectangle(
                    (j + low, i + low),
                    side,
                    side,
                    facecolor=KEPT if keep else "white",
                    edgecolor=KEPT if keep else PRUNED,
                )
            )
    for k in range(M):
        for count, x, y in (
            (kept[k].sum(), M + 0.5, k + 0.5),
            (kept[:, k].sum(), k + 0.5, M + 0.5),
        ):
            wrong = int(count) > N
            axes.text(
                x,
                y,
                str(int(count)),
                ha="center",
                va="center",
                fontsize=14,
                color="white" if wrong else INK,
                fontweight="bold" if wrong else "normal",
                bbox={"boxstyle": "circle,pad=0.22", "facecolor": WRONG, "edgecolor": "none"}
                if wrong
                else None,
            )
    axes.set_title(title, fontsize=13, color=INK, pad=10)
    axes.set_xlim(-0.1, M + 1)
    axes.set_ylim(M + 1, -0.1)
    axes.set_aspect("equal")
    axes.axis("off")


def main() -> None:
    """Draw the picture next to this file."""
    weight = load_file(model_directory() / "model.safetensors")[LAYER]
    tile = weight[TOP : TOP + M, LEFT : LEFT + M].abs()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 5.6))
    for axes, pattern, text in (
        (left, "4:8", "4:8: rows keep 4, columns do not"),
        (right, "4:8T", "4:8T: rows and columns keep 4"),
    ):
        mask = transposable.find_mask(tile, pattern).tensor
        panel(axes, tile, mask, f"{text}\n{100 * tile[mask].sum() / tile.sum():.1f} % of |W| kept")
    figure.text(
        0.5,
        0.035,
        "filled: kept, hollow: pruned; area: |w|; margins: kept per row and column, "
        f"round: more than {N}",
        ha="center",
        fontsize=11,
        color=INK,
    )
    figure.subplots_adjust(left=0.02, right=0.98, top=0.87, bottom=0.06, wspace=0.06)
    figure.savefig(Path(__file__).with_name("tile.png"), dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
