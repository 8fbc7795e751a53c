"""Magnitude kept on the page: figure 3b."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from experiments.paper.common import PATTERNS
from experiments.paper.shown.base import OKABE, Documents, Section, canvas, own, save, span
from experiments.paper.verdicts import JOINED, Claim, Finding, Verdict, joined
from experiments.tables import markdown

ABOUT: Final = 1.0
KEPT = Claim(
    "4:8T keeps about as much magnitude as 2:4",
    "figure 3b",
    f'"About": within {ABOUT:.0f} % of the unstructured magnitude, on all measured layers of a '
    "network together." + JOINED,
)


def findings(documents: Documents) -> list[Finding]:
    found = documents["retention"]["networks"]
    apart = [100 * (one["total"]["4:8T"] - one["total"]["2:4"]) for one in found]
    layers = [
        100 * (layer["relative"]["4:8T"] - layer["relative"]["2:4"])
        for one in found
        for layer in one["layers"]
    ]
    more = sum(value > 0 for value in layers)
    return [
        Finding(
            KEPT,
            f"4:8T less 2:4: {span(apart, '+.1f')} % of the unstructured magnitude for the five "
            f"networks; more than 2:4 on {more} of {len(layers)} layers",
            joined([Verdict.HOLDS if abs(v) <= ABOUT else Verdict.FAILS for v in apart]),
        )
    ]


def table(documents: Documents) -> str:
    rows = []
    for one in documents["retention"]["networks"]:
        cells = [f"{one['total'][pattern]:.3f}" for pattern in PATTERNS]
        rows.append([f"{one['network']}: {one['chosen']}", str(len(one["layers"])), *cells])
        last = one["layers"][-1]
        if len(one["layers"]) > 1:
            cells = [f"{last['relative'][pattern]:.3f}" for pattern in PATTERNS]
            rows.append([f"{one['network']}: {last['name']}", "1", *cells])
    return markdown(["magnitude kept", "layers", *PATTERNS], rows)


def draw(documents: Documents, folder: Path) -> None:
    """Every layer a small point, the network a large one."""
    found = documents["retention"]["networks"]
    figure, panels = canvas(1, len(found), (13, 3.8), sharey=True)
    for panel, one in zip(panels[0], found, strict=True):
        for place, pattern in enumerate(PATTERNS):
            colour, marker = OKABE[pattern]
            values = [layer["relative"][pattern] for layer in one["layers"]]
            middle = (len(values) - 1) / 2
            places = [place + (i - middle) / (2 * max(len(values), 12)) for i in range(len(values))]
            panel.plot(places, values, ".", color=colour, markersize=4, alpha=0.6)
            panel.plot(place, one["total"][pattern], marker, color=colour, markersize=9, mec="k")
        level = one["total"]["2:4"]
        panel.axhline(level, color="#777777", linewidth=0.8, linestyle="--", zorder=0)
        panel.set_xticks(range(len(PATTERNS)), PATTERNS, rotation=60)
        panel.set_title(one["network"], fontsize=11)
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
    panels[0][0].set_ylabel("magnitude kept, unstructured = 1")
    save(figure, folder / "retention.png")


SECTION = Section(
    name="retention",
    claims=(KEPT,),
    sources={"retention": own("retention")},
    findings=findings,
    table=table,
    draw=draw,
)
