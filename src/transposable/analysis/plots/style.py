"""What all pictures of a report share: colours, axes, legends, labels, bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from transposable.analysis.optional import need
from transposable.pattern import Pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too light for white paper; markers and line
# styles say the same once more.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333")
LINES: Final[tuple[Any, ...]] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)))
_MARKERS: Final = {"row": "o", "transposable": "D", "sequential": "s", "unstructured": "^"}
INK: Final = "#222222"
GRID: Final = "#DDDDDD"

WIDTH: Final = 4.3
"""Inches: what a phone shows at nearly full size, and half a desktop's page."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished picture: its name, what it shows in words, and matplotlib's figure."""

    name: str
    alt: str
    figure: Figure

    @property
    def svg(self) -> bytes:
        """As SVG, letters as outlines: it looks the same wherever it is shown."""
        return image(self.figure, "svg")

    @property
    def png(self) -> bytes:
        """As PNG of 200 dots an inch."""
        return image(self.figure, "png", dpi=200)


def check() -> None:
    """Raise DependencyError if matplotlib is missing, before any work is done."""
    need("matplotlib.figure", "plots")


def new_axes(*, width: float = WIDTH, height: float, bare: bool = False) -> tuple[Figure, Axes]:
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
    axes.grid(True, axis="x", color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10.5, colors=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_size(11)
        axis.label.set_color(INK)
    return figure, axes


def style_of(patterns: Sequence[Pattern], pattern: Pattern) -> dict[str, Any]:
    """The same pattern looks the same in every plot of a report, and unlike any other.

    The first six differ in their lines alone, and each of the first 36 in colour or line.
    """
    if pattern.structure == "unstructured":
        return {"color": COLOURS[-1], "ls": ":", "marker": _MARKERS["unstructured"]}
    others = [p for p in patterns if p.structure != "unstructured"]
    place = others.index(pattern)
    again = place // len(LINES)  # the same colours once more, with other lines
    return {
        "color": COLOURS[place % (len(COLOURS) - 1)],
        "ls": LINES[(place + again) % len(LINES)],
        "marker": _MARKERS[pattern.structure],
    }


def legend(axes: Axes, entries: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=min(entries, 5),
        frameon=False,
        fontsize=10.5,
        labelcolor=INK,
        borderaxespad=0.1,
        columnspacing=0.9,
        handlelength=1.5,
        handletextpad=0.4,
    )


def label_points(
    figure: Figure, axes: Axes, points: Sequence[tuple[float, float, Pattern]]
) -> None:
    """Names beside points, each at the first place where it covers no other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # it knows how large a text is
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
                color=INK,
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


def in_percent(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def image(figure: Figure, kind: str, dpi: int = 100) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Neither a date nor random ids: the same figures give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "transposable", "svg.fonttype": "path"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
