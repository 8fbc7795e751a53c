"""Diversity on the page: table 1, and accuracy against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from experiments.paper.accuracy import DENSE, NETWORKS
from experiments.paper.common import PATTERNS
from experiments.paper.diversity import block_log10
from experiments.paper.shown.base import OKABE, Documents, Section, canvas, own, save, span
from experiments.paper.verdicts import (
    JOINED,
    NO_WORSE,
    Claim,
    Finding,
    Verdict,
    joined,
    no_worse,
)
from experiments.tables import markdown

SIGNIFICANT: Final = 0.05
COLUMNS: Final = 3
COUNT = Claim(
    "4:8T allows more masks than 2:4",
    "table 1",
    "Exact integers for one 8 x 8 block.",
)
RANKS = Claim(
    "The more masks a pattern allows, the more accurate the network at 50 %",
    "figure 3a",
    "Kendall's tau of the exact number of masks and the accuracy over the six patterns, for each "
    f"network and stage: holds if p < {SIGNIFICANT} (one-sided, among all 720 orders) and the 95 % "
    "interval of tau (bootstrap over the test images or pairs) is above 0." + JOINED,
)
EQUAL = Claim(
    "4:8T is as accurate as 2:4, so that it can take its place",
    "figure 3a",
    "4:8T less 2:4 in points of top-1, or of 100 x Spearman, image by image or pair by pair. "
    + NO_WORSE
    + JOINED,
)


def _block(documents: Documents) -> dict[str, dict[str, Any]]:
    return {one["pattern"]: one for one in documents["diversity"]["block"]}


def stages_of(documents: Documents) -> list[dict[str, Any]]:
    """The ResNets at all stages, then the encoder."""
    return [*documents["diversity"]["stages"], documents["pairs"]["stage"]]


def findings(documents: Documents) -> list[Finding]:
    block, stages = _block(documents), stages_of(documents)
    ours, other = block["4:8T"], block["2:4"]
    more = int(ours["exact"]) > int(other["exact"])
    over = 10 ** (ours["paper_log10"] - ours["exact_log10"])
    count = Finding(
        COUNT,
        f"{power(ours['exact_log10'])} against {power(other['exact_log10'])} in an 8 x 8 block; "
        f"the paper's form gives {power(ours['paper_log10'])}",
        Verdict.HOLDS if more else Verdict.FAILS,
        "" if more else f"the form counts a mask of 4:8T {over:.0f} times",
    )
    return [count, _ranked(stages), _equal(stages)]


def _ranked(stages: list[dict[str, Any]]) -> Finding:
    def verdict(stage: dict[str, Any]) -> Verdict:
        found = stage["ranks"]["exact"]
        sure = found["p"] < SIGNIFICANT and found["kendall_low"] > 0
        return Verdict.HOLDS if sure else Verdict.OPEN

    if not stages:
        return Finding(RANKS, "no stage is complete", Verdict.MISSING)
    taus = {
        method: [stage["ranks"][method]["kendall"] for stage in stages]
        for method in ("exact", "paper")
    }
    rho = [stage["ranks"]["exact"]["spearman"] for stage in stages]
    worst = max(stage["ranks"]["exact"]["p"] for stage in stages)
    return Finding(
        RANKS,
        f"tau {span(taus['exact'], '.2f')}, Spearman {span(rho, '.2f')} with the exact numbers, p "
        f"at most {worst:.3f}; tau {span(taus['paper'], '.2f')} with the paper's; "
        f"{len({s['network'] for s in stages})} networks, {len(stages)} cases",
        joined([verdict(stage) for stage in stages]),
        _against(stages),
    )


def _against(stages: list[dict[str, Any]]) -> str:
    """The pairs of patterns that stand in the other order, and how often."""
    seen: dict[tuple[str, str], int] = {}
    for stage in stages:
        means = {p: sum(stage["score"][p]) / len(stage["score"][p]) for p in PATTERNS}
        order = sorted(PATTERNS, key=lambda p: -block_log10("exact")[p])
        for place, more in enumerate(order):
            for fewer in order[place + 1 :]:
                if means[fewer] > means[more]:
                    seen[fewer, more] = seen.get((fewer, more), 0) + 1
    parts = [
        f"{fewer} is more accurate than {more}, with fewer masks, in {count} of {len(stages)}"
        for (fewer, more), count in seen.items()
    ]
    return f"but {'; '.join(parts)}" if parts else ""


def _difference(stage: dict[str, Any], of: str, to: str) -> dict[str, float]:
    found: dict[str, float] = next(
        one for one in stage["differences"] if (one["of"], one["to"]) == (of, to)
    )
    return found


def _equal(stages: list[dict[str, Any]]) -> Finding:
    each, verdicts = [], []
    for stage in stages:
        found = _difference(stage, "4:8T", "2:4")
        each.append(
            f"{stage['network']} {stage['stage']} {found['points']:+.1f} ± {found['error']:.1f}"
        )
        verdicts.append(no_worse(found["points"], found["error"]))
    return Finding(EQUAL, "; ".join(each) or "no stage is complete", joined(verdicts))


def power(log10: float) -> str:
    """ "1.17e11" for a logarithm."""
    exponent = int(log10 // 1)
    return f"{10 ** (log10 - exponent):.2f}e{exponent}"


def table(documents: Documents) -> str:
    document = documents["diversity"]
    block = _block(documents)
    counted = [
        [
            pattern,
            power(block[pattern]["paper_log10"]),
            power(block[pattern]["exact_log10"]),
            f"{block[pattern]['bits_per_weight']:.3f}",
            *(f"{document['networks'][name]['exact'][pattern]:,.0f}" for name in NETWORKS),
        ]
        for pattern in sorted(PATTERNS, key=lambda p: -block[p]["exact_log10"])
    ]
    head = ["8 x 8 block", "masks, the paper's form", "masks, exact", "bits per weight, exact"]
    head += [f"digits for {name}" for name in NETWORKS]
    parts = [markdown(head, counted), ""]
    rows = []
    for stage in stages_of(documents):
        shown = [DENSE] * (DENSE in stage["score"]) + list(PATTERNS)
        cells = {p: sum(stage["score"][p]) / len(stage["score"][p]) for p in shown}
        found = stage["ranks"]
        rows.append(
            [
                f"{stage['network']}, {stage['stage']}: {stage['unit']}",
                str(len(stage["seeds"])),
                *(
                    f"{cells[p]:.2f} ± {stage['error'][p]:.2f}" if p in cells else ""
                    for p in (DENSE, *PATTERNS)
                ),
                f"{found['exact']['kendall']:.2f} ({found['exact']['kendall_low']:.2f} to "
                f"{found['exact']['kendall_high']:.2f})",
                f"{found['paper']['kendall']:.2f}",
                *(f"{found[m]['spearman']:.2f}" for m in ("exact", "paper")),
                f"{found['exact']['p']:.4f}",
            ]
        )
    head = ["accuracy", "seeds", DENSE, *PATTERNS, "tau, exact (95 %)", "tau, paper's"]
    head += ["Spearman, exact", "Spearman, paper's", "p, exact"]
    parts += [markdown(head, rows), "", _planned(document)]
    return "\n".join(parts)


def _planned(document: dict[str, Any]) -> str:
    budget = document["budget"]
    text = (
        f"Fine-tuned: {budget['steps']} steps of {budget['batch']} images, "
        f"{budget['steps'] * budget['batch']:,} in all, a quarter of an epoch. ± is one standard "
        "error, of the test images and the seeds."
    )
    if document["runs"] < document["planned"]:
        text += (
            f" Of {document['planned']} planned runs {document['runs']} are finished; a row has "
            "the seeds that all patterns have."
        )
    return text


def draw(documents: Documents, folder: Path) -> None:
    """Accuracy against log10 of the number of masks, a panel for each network and stage."""
    found = stages_of(documents)
    block = _block(documents)
    rows = (len(found) + COLUMNS - 1) // COLUMNS
    figure, panels = canvas(rows, COLUMNS, (12.5, 3.1 * rows), sharex=True)
    for panel, stage in zip(panels.flat, found, strict=False):
        panel.set_title(f"{stage['network']}, {stage['stage']}", fontsize=11)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.set_ylabel(stage["unit"])
        _panel(panel, stage, block)
    for panel in panels.flat[len(found) :]:
        panel.axis("off")
    for panel in panels.flat[max(len(found) - COLUMNS, 0) : len(found)]:
        panel.set_xlabel("log10 of the masks of an 8 x 8 block")
        panel.tick_params(labelbottom=True)
    save(figure, folder / "diversity.png")


def _panel(panel: Any, stage: dict[str, Any], block: dict[str, dict[str, Any]]) -> None:
    if DENSE in stage["score"]:
        dense = sum(stage["score"][DENSE]) / len(stage["score"][DENSE])
        panel.axhline(dense, color="#777777", linewidth=1, linestyle="--")
        panel.annotate(
            "dense", (5, dense), xytext=(0, 2), textcoords="offset points", fontsize=10, va="bottom"
        )
    for pattern in PATTERNS:
        colour, marker = OKABE[pattern]
        mean = sum(stage["score"][pattern]) / len(stage["score"][pattern])
        exact, paper = block[pattern]["exact_log10"], block[pattern]["paper_log10"]
        if paper - exact > 0.01:
            panel.plot([exact, paper], [mean, mean], color=colour, linewidth=1, linestyle=":")
            panel.plot(paper, mean, marker, color=colour, fillstyle="none", markersize=8)
        panel.errorbar(
            exact,
            mean,
            yerr=2 * stage["error"][pattern],
            fmt=marker,
            color=colour,
            markersize=8,
            capsize=3,
            label=pattern,
        )
        left = pattern in ("50%", "4:8T", "2:4T")
        panel.annotate(
            pattern,
            (exact, mean),
            xytext=(-7, 4)
            if left and pattern != "50%"
            else (-8, -4)
            if left
            else (7, -12 if pattern == "2:4" else -4),
            textcoords="offset points",
            ha="right" if left else "left",
            va="bottom" if left and pattern != "50%" else "top",
            fontsize=10,
        )
    panel.margins(x=0.1, y=0.16)


SECTION = Section(
    name="diversity",
    claims=(COUNT, RANKS, EQUAL),
    sources={"diversity": own("diversity"), "pairs": own("pairs")},
    findings=findings,
    table=table,
    draw=draw,
)
