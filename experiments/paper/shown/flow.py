"""The min-cost flow on the page: figure 4 drawn, both solvers agreed, time against size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.tables import seconds
from experiments.paper.flow import LARGE, PUBLISHED_GROWTH
from experiments.paper.shown.base import Documents, Section, canvas, own, save
from experiments.paper.verdicts import Claim, Finding, Verdict
from experiments.tables import markdown

OPTIMAL = Claim(
    "The optimal transposable mask is a min-cost flow",
    "figure 4",
    "On every tile the network as published, solved by OR-tools, and the exact solver, which "
    "shares no code with it, prune the same sum of integers.",
)
GROWTH = Claim(
    f"It is found in O({PUBLISHED_GROWTH})",
    "section on the optimal mask",
    "The power of M fitted to the measured times of a tile, M = 4 to 64, is not above the one "
    f"fitted to {PUBLISHED_GROWTH} itself over the same sizes.",
)
STYLES: Final = {
    "exact": ("#D55E00", "D", "transposable, exact"),
    "flow, OR-tools": ("#0072B2", "o", "min-cost flow, OR-tools (C++)"),
    "flow, networkx": ("#009E73", "s", "min-cost flow, networkx (Python)"),
}


def findings(documents: Documents) -> list[Finding]:
    document = documents["flow"]
    checks = document["checks"]
    tiles, different = (sum(one[key] for one in checks) for key in ("tiles", "different"))
    power = document["growth"]["in_m"]
    bound = power[PUBLISHED_GROWTH]
    fitted = {name: p for name, p in power.items() if name != PUBLISHED_GROWTH}
    weights = document["growth"]["in_weights"].values()
    text = ", ".join(f"M^{p:.1f} {name}" for name, p in fitted.items())
    return [
        Finding(
            OPTIMAL,
            f"{tiles:,} tiles of {len(checks)} patterns, 3:4T to 1:64T: {different} differ",
            Verdict.FAILS if different else Verdict.HOLDS,
        ),
        Finding(
            GROWTH,
            f"time of a tile ~ {text} ({PUBLISHED_GROWTH} over these sizes: M^{bound:.1f}); in "
            f"the number of weights, from {LARGE}^2 on, powers {min(weights):.2f} to "
            f"{max(weights):.2f}",
            Verdict.HOLDS if max(fitted.values()) <= bound else Verdict.FAILS,
        ),
    ]


def table(documents: Documents) -> str:
    document = documents["flow"]
    names = list(STYLES)
    rows = []
    for one in document["by_tile"]:
        m, taken = one["m"], one["s"]
        rows.append(
            [
                f"{m // 2}:{m}T",
                *(f"{1e6 * taken[name]:.3g}" for name in names),
                *(f"{1e9 * taken[name] / m**2:.3g}" for name in names),
                f"{taken['flow, OR-tools'] / taken['exact']:.0f}",
            ]
        )
    power = document["growth"]["in_m"]
    rows.append(
        [
            "fitted power of M",
            *(f"{power[name]:.2f}" for name in names),
            *(f"{power[name] - 2:+.2f}" for name in names),
            "",
        ]
    )
    head = ["one tile", *(f"{name}, µs" for name in names)]
    head += [*(f"{name}, ns per weight" for name in names), "OR-tools / exact"]
    sides = [
        [
            f"{one['side']} x {one['side']}",
            *(seconds(one["s"][m]) for m in ("4", "8", "16")),
            *(f"{1e9 * one['s'][m] / one['side'] ** 2:.2f}" for m in ("4", "8", "16")),
        ]
        for one in document["by_side"]
    ]
    patterns = ("2:4T", "4:8T", "8:16T")
    sides_head = ["exact, matrix", *patterns, *(f"{p}, ns per weight" for p in patterns)]
    return f"{markdown(head, rows)}\n\n{markdown(sides_head, sides)}"


def draw(documents: Documents, folder: Path) -> None:
    draw_network(documents["flow"]["drawn"], folder / "flow_network.png")
    draw_times(documents["flow"], folder / "flow_time.png")


def draw_network(drawn: dict[str, Any], file: Path) -> None:
    """Source, rows, columns and sink; the flow is thick, and the tile stands beside it."""
    tile, pruned = drawn["tile"], drawn["pruned"]
    size = len(tile)
    lacks = sum(pruned[0])
    figure, panels = canvas(1, 2, (11.5, 5.2), gridspec_kw={"width_ratios": (3.1, 1)})
    panel, beside = panels[0]
    rows = [(1.3, size - 1 - i) for i in range(size)]
    cols = [(3.7, size - 1 - j) for j in range(size)]
    source, sink = (0.0, (size - 1) / 2), (5.0, (size - 1) / 2)
    ink, light = "#D55E00", "#bbbbbb"
    for (x, y), ends, above in ((source, rows, 0.42), (sink, cols, 4.58)):
        for end in ends:
            panel.plot([x, end[0]], [y, end[1]], color="#555555", linewidth=2, zorder=1)
        panel.text(above, size - 1.15, f"capacity {lacks}", ha="center", fontsize=11)
    for i, start in enumerate(rows):
        for j, end in enumerate(cols):
            used = bool(pruned[i][j])
            panel.plot(
                [start[0], end[0]],
                [start[1], end[1]],
                color=ink if used else light,
                linewidth=2.6 if used else 1,
                zorder=2 if used else 1,
            )
            if used:
                at = 0.2
                panel.text(
                    start[0] + at * (end[0] - start[0]),
                    start[1] + at * (end[1] - start[1]),
                    str(tile[i][j]),
                    color=ink,
                    fontsize=11,
                    ha="center",
                    va="center",
                    zorder=3,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                )
    nodes = [(*source, "source"), (*sink, "sink")]
    nodes += [(*at, f"row {i + 1}") for i, at in enumerate(rows)]
    nodes += [(*at, f"col {j + 1}") for j, at in enumerate(cols)]
    for x, y, name in nodes:
        panel.text(
            x,
            y,
            name,
            ha="center",
            va="center",
            zorder=4,
            bbox={"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "#333333"},
        )
    panel.text(2.5, size - 0.45, "capacity 1, cost |w|", ha="center", fontsize=11)
    panel.text(
        2.5,
        -0.75,
        f"{size * lacks} units flow from source to sink; orange entries are pruned",
        ha="center",
        fontsize=11,
    )
    panel.set_xlim(-0.5, 5.5)
    panel.set_ylim(-1, size - 0.2)
    panel.axis("off")
    for i in range(size):
        for j in range(size):
            out = bool(pruned[i][j])
            beside.text(
                j,
                i,
                str(tile[i][j]),
                ha="center",
                va="center",
                fontsize=13,
                color=ink if out else "#222222",
                fontweight="normal" if out else "bold",
                bbox={
                    "boxstyle": "square,pad=0.5",
                    "facecolor": "#fbe3d6" if out else "white",
                    "edgecolor": "#333333",
                },
            )
    beside.set_xlim(-0.7, size - 0.3)
    beside.set_ylim(size - 0.2, -0.8)
    beside.set_aspect("equal")
    beside.axis("off")
    beside.set_title(
        f"|w|: bold is kept, {size - lacks} of {size}\nin every row and column", size=11
    )
    save(figure, file)


def draw_times(document: dict[str, Any], file: Path) -> None:
    figure, panels = canvas(1, 2, (12, 4.4))
    left, right = panels[0]
    sizes = [one["m"] for one in document["by_tile"]]
    for name, (colour, marker, label) in STYLES.items():
        times = [one["s"][name] for one in document["by_tile"]]
        power = document["growth"]["in_m"][name]
        left.plot(sizes, times, f"{marker}-", color=colour, label=f"{label}: M^{power:.1f}")
        each = [1e9 * t / m**2 for t, m in zip(times, sizes, strict=True)]
        right.plot(sizes, each, f"{marker}-", color=colour, label=label)
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [str(m) for m in sizes])
        panel.minorticks_off()
        panel.set_xlabel("M (tile M x M, N = M/2)")
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
    left.set_ylabel("seconds for one tile")
    right.set_ylabel("nanoseconds per weight")
    low, high = left.get_ylim()
    left.set_ylim(low, high * 30)  # room for the legend
    left.legend(frameon=False, fontsize=10, loc="upper left")
    save(figure, file)


SECTION = Section(
    name="flow",
    claims=(OPTIMAL, GROWTH),
    sources={"flow": own("flow")},
    findings=findings,
    table=table,
    draw=draw,
)
