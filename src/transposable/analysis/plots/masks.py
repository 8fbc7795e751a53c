"""The corner of a mask as a picture, every line of every tile checked."""

from __future__ import annotations

from typing import Final

import numpy as np

from transposable.analysis.plots.style import image, new_axes
from transposable.analysis.study import Picture

_KEPT: Final = "#1F4E79"
_PRUNED: Final = "#E6E6E6"
_HOLDS: Final = "#0072B2"
_BROKEN: Final = "#C43C00"
_INCHES: Final = 2.3


def mask_picture(picture: Picture) -> bytes:
    """The corner of a mask as PNG: kept weights dark; each line of each tile marked.

    A dot at the end of a row (below a column) of a tile means that it keeps at most N, a cross that
    it keeps more.
    """
    from matplotlib.collections import PolyCollection

    kept = picture.kept
    rows, cols = kept.shape
    n, m = picture.pattern.n, picture.pattern.m
    marked = picture.pattern.structure != "unstructured"
    step = m if marked else max(rows, cols)
    gap = 1.15 if marked else 0.0  # where the marks of a tile stand

    def place(index: int) -> float:
        return index + gap * (index // step)

    width, height = place(cols - 1) + 1 + gap, place(rows - 1) + 1 + gap
    figure, axes = new_axes(width=_INCHES, height=_INCHES * height / width, bare=True)
    corners = ((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94))
    for keeps, colour in ((True, _KEPT), (False, _PRUNED)):
        squares = [
            [(place(j) + x, place(i) + y) for x, y in corners]
            for i, j in np.argwhere(kept == keeps).tolist()
        ]
        axes.add_collection(PolyCollection(squares, facecolor=colour, edgecolor="none"))
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
                # In points, of the inches that the width in cells takes.
                points = size * _INCHES * 72 / width
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
    return image(figure, "png", dpi=220)
