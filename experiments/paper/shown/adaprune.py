"""AdaPrune on the page: from dense, from unstructured, and how far that is from N:M (figure 5)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from experiments.paper.shown.base import OKABE, Documents, Section, canvas, own, save, span
from experiments.paper.verdicts import Claim, Finding, Verdict
from experiments.tables import markdown

RECOVERED: Final = 0.9
SIGNIFICANT: Final = 0.05
DEVIATIONS: Final = 4
METHOD: Final = "AdaPrune"
DENSE = Claim(
    "AdaPrune turns a dense network into an N:M one with little loss, without training",
    "section on switching the structure (ResNet-50, BERT)",
    f"At least {100 * RECOVERED:.0f} % of what the mask by magnitude loses is won back, on every "
    "network; in part if on some.",
)
EQUATION = Claim(
    "A group of M with i.i.d. zeros has its N zeros with the binomial tail P",
    "equation for P, figure 5a",
    f"Groups drawn at random agree with P within {DEVIATIONS} standard errors, for every pattern "
    "and share of zeros.",
)
TRANSITION = Claim(
    "P steps from 0 to 1 at N/M = the share of zeros, the sharper the larger M",
    "figure 5a",
    "From M = 4 to 64 at 50 % the step gets narrower and its middle nearer to N/M, each time.",
)
VIOLATED = Claim(
    "The fewer constraints a sparse network violates, the less its conversion costs",
    "figure 5b",
    "Kendall's tau of violated constraints and accuracy lost, over all networks and patterns, for "
    "the mask alone and after AdaPrune: holds if both are above 0 with p < "
    f"{SIGNIFICANT} (one-sided).",
)


def _dense_rows(documents: Documents) -> list[dict[str, Any]]:
    found = []
    for task in documents["adaprune"]["tasks"]:
        runs = {run["config"]: run for run in task["runs"]}
        if METHOD not in runs or "magnitude" not in runs:
            continue
        masked, score = runs["magnitude"]["score_masked"], runs[METHOD]["score"]
        found.append(
            {
                "name": f"{task['task']} {task['pattern']}",
                "score": task["score"],
                "digits": task["digits"],
                "dense": task["dense"],
                "masked": masked,
                "after": score,
                "recovered": (score - masked) / (task["dense"] - masked),
            }
        )
    return found


def conversions(documents: Documents) -> list[dict[str, Any]]:
    """Every network of unstructured sparsity under every pattern."""
    return [
        {"sparsity": run["sparsity"], "start": run["start"], **one}
        for run in documents["adaprune"]["conversion"]
        for one in run["converted"]
    ]


def findings(documents: Documents) -> list[Finding]:
    return [_dense(documents), _equation(documents), _transition(documents), _violated(documents)]


def _dense(documents: Documents) -> Finding:
    rows = _dense_rows(documents)
    good = [row for row in rows if row["recovered"] >= RECOVERED]
    worst = min(rows, key=lambda row: row["recovered"])
    left = [row["name"] for row in rows if row["recovered"] < RECOVERED]
    text = f"{100 * worst['recovered']:.0f} % ({worst['name']})"
    if good:
        text = f"{span([100 * row['recovered'] for row in good], '.0f')} % of the loss is won back"
        text += f" on {', '.join(row['name'] for row in good)}"
        if left:
            text += "; " + ", ".join(
                f"{100 * row['recovered']:.0f} % on {row['name']}"
                for row in rows
                if row["recovered"] < RECOVERED
            )
    verdict = Verdict.HOLDS if not left else Verdict.PARTLY if good else Verdict.FAILS
    because = "a network without weights to spare cannot be fitted layer by layer" if left else ""
    return Finding(DENSE, text, verdict, because)


def _equation(documents: Documents) -> Finding:
    drawn = [one for curve in documents["transition"]["curves"] for one in curve["drawn"]]
    most = max(abs(one["deviation"]) for one in drawn)
    return Finding(
        EQUATION,
        f"{len(drawn)} simulations of {drawn[0]['draws']:,} groups: at most {most:.1f} standard "
        "errors apart",
        Verdict.HOLDS if most <= DEVIATIONS else Verdict.FAILS,
    )


def _transition(documents: Documents) -> Finding:
    curves = documents["transition"]["curves"]
    widths = [curve["width"] for curve in curves]
    apart = [abs(curve["middle"] - curve["limit"]) for curve in curves]
    falling = all(a > b for line in (widths, apart) for a, b in pairwise(line))
    return Finding(
        TRANSITION,
        f"width (P from 0.1 to 0.9) {widths[0]:.2f} at M = {curves[0]['m']}, {widths[-1]:.2f} at "
        f"M = {curves[-1]['m']}; middle at {curves[0]['middle']:.3f} and "
        f"{curves[-1]['middle']:.3f}; N/M = 0.5",
        Verdict.HOLDS if falling else Verdict.FAILS,
    )


def _violated(documents: Documents) -> Finding:
    from scipy.stats import kendalltau

    rows = conversions(documents)
    violated = [row["violated"] for row in rows]
    found = {
        name: kendalltau(violated, [row["start"] - row[key] for row in rows], alternative="greater")
        for name, key in (("mask alone", "masked"), (METHOD, "adaprune"))
    }
    sure = [one.statistic > 0 and one.pvalue < SIGNIFICANT for one in found.values()]
    text = "; ".join(
        f"{name}: tau {one.statistic:.2f}, p {one.pvalue:.2g}" for name, one in found.items()
    )
    verdict = Verdict.HOLDS if all(sure) else Verdict.PARTLY if any(sure) else Verdict.OPEN
    after = [row["start"] - row["adaprune"] for row in rows]
    because = ""
    if sure[0] and not sure[1]:
        because = (
            f"AdaPrune leaves losses of {span(after, '.1f')} points, whatever was violated before"
        )
    return Finding(VIOLATED, f"{text} ({len(rows)} conversions)", verdict, because)


def table(documents: Documents) -> str:
    dense = [
        [
            f"{row['name']}: {row['score']}",
            f"{row['dense']:.{row['digits']}f}",
            f"{row['masked']:.{row['digits']}f}",
            f"{row['after']:.{row['digits']}f}",
            f"{100 * row['recovered']:.0f}",
        ]
        for row in _dense_rows(documents)
    ]
    converted = [
        [
            f"{row['sparsity']} % zeros to {row['pattern']}",
            f"{row['start']:.2f}",
            f"{100 * row['violated']:.1f}",
            f"{row['masked']:.2f}",
            f"{row['adaprune']:.2f}",
            f"{row['adaprune'] - row['start']:+.2f}",
        ]
        for row in conversions(documents)
    ]
    dense_head = ["from dense", "dense", "mask by magnitude alone", METHOD, "won back, %"]
    head = ["from unstructured", "top-1 before, %", "violated, %", "mask alone", METHOD, "change"]
    return f"{markdown(dense_head, dense)}\n\n{markdown(head, converted)}"


def draw(documents: Documents, folder: Path) -> None:
    """Feasibility curves with drawn groups, and what a conversion loses."""
    figure, panels = canvas(1, 2, (12.5, 4.8))
    left, right = panels[0]
    _curves(left, documents["transition"])
    _conversions(right, documents)
    for panel in (left, right):
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
    save(figure, folder / "adaprune.png")


def _curves(panel: Any, document: dict[str, Any]) -> None:
    colours = ("#56B4E9", "#0072B2", "#009E73", "#D55E00", "#333333")
    lines = ("-", "--", "-.", (0, (5, 1)), ":")
    for curve, colour, line in zip(document["curves"], colours, lines, strict=True):
        name = f"{curve['n']}:{curve['m']}"
        panel.plot(
            document["shares"], curve["p"], color=colour, linestyle=line, label=name, linewidth=2
        )
        drawn = curve["drawn"]
        panel.plot(
            [one["rho"] for one in drawn],
            [one["estimate"] for one in drawn],
            "o",
            color=colour,
            markersize=4.5,
        )
    for tile, marker in zip(document["tiles"], ("D", "s"), strict=True):
        drawn = tile["drawn"]
        panel.plot(
            [one["rho"] for one in drawn],
            [one["estimate"] for one in drawn],
            marker,
            color="#CC79A7",
            fillstyle="none",
            markersize=7,
            label=f"tile of {tile['pattern']}, drawn",
        )
    panel.axvline(0.5, color="#777777", linewidth=0.8)
    panel.set_xlabel("share of zeros")
    panel.set_ylabel("probability that the pattern holds")
    panel.legend(frameon=False, fontsize=9.5, loc="upper left", title="points: drawn at random")


def _conversions(panel: Any, documents: Documents) -> None:
    rows = conversions(documents)
    for pattern in dict.fromkeys(row["pattern"] for row in rows):
        colour, marker = OKABE[pattern]
        chosen = sorted(
            (row for row in rows if row["pattern"] == pattern), key=lambda row: row["violated"]
        )
        x = [100 * row["violated"] for row in chosen]
        for key, line, fill, name in (
            ("adaprune", "-", "full", METHOD),
            ("masked", ":", "none", "mask alone"),
        ):
            panel.plot(
                x,
                [row[key] - row["start"] for row in chosen],
                marker=marker,
                linestyle=line,
                fillstyle=fill,
                color=colour,
                markersize=7,
                label=f"{pattern}, {name}",
            )
    panel.axhline(0, color="#777777", linewidth=0.8)
    panel.set_xlabel("constraints violated before conversion, %")
    panel.set_ylabel("change of top-1 by conversion, points")
    panel.legend(frameon=False, fontsize=9.5, loc="lower left")


SECTION = Section(
    name="adaprune",
    claims=(DENSE, EQUATION, TRANSITION, VIOLATED),
    sources={"adaprune": "experiments/adaprune/result.json", "transition": own("transition")},
    findings=findings,
    table=table,
    draw=draw,
)
