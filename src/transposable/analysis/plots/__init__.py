"""The pictures of a report, as SVG and PNG; only here is matplotlib imported, and late."""

from __future__ import annotations

from transposable.analysis.plots.charts import draw_all
from transposable.analysis.plots.masks import mask_picture
from transposable.analysis.plots.style import Drawing, check

__all__ = ["Drawing", "check", "draw_all", "mask_picture"]
