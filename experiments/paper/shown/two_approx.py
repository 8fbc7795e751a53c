"""Algorithm 1 on the page: its steps, its worst blocks, its loss on weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.paper.shown.base import Documents, Section, canvas, own, save, span
from experiments.paper.verdicts import Claim, Finding, Verdict
from experiments.tables import markdown

EXAMPLE = Claim(
    "On the block of figure A.1 the algorithm takes 7 entries where 4 suffice: ratio 7/4",
    "figure A.1",
    "7 steps, 4 entries in the optimum (flow in exact arithmetic), and a ratio within 1 % of 7/4.",
)
BOUND = Claim(
    "The pruned weight is less than twice the optimum",
    "lemma 1",
    "W(P) < 2 W* in every block of the search and every tile of the weights.",
)
TIGHT = Claim(
    "The bound is tight",
    "lemma 1, figure A.1",
    "The search, which is told nothing, comes above 1.99 for some block size; the block is checked "
    "with the algorithm word by word and a flow in exact arithmetic.",
)


def findings(documents: Documents) -> list[Finding]:
    document = documents["two_approx"]
    example, searches, real = (document[key] for key in ("example", "searches", "weights"))
    steps, ratio = len(example["steps"]), example["taken"] / example["least"]
    right = steps == 7 and len(example["optimal"]) == 4 and abs(ratio - 7 / 4) < 0.0175
    violated = sum(one["violations"] for one in real)
    violated += sum(one["found"] >= 2 or one["confirmed"] >= 2 for one in searches)
    blocks = sum(one["evaluated"] for one in searches)
    tiles = sum(one["tiles"] for one in real)
    best = max(searches, key=lambda one: one["confirmed"])
    fours = max(one["confirmed"] for one in searches if one["pattern"].split(":")[1] == "4T")
    lost = [100 * one["lost_mean"] for one in real]
    return [
        Finding(
            EXAMPLE,
            f"{steps} entries of {example['taken']:.3f} in all, the optimum {example['least']:.3f}:"
            f" ratio {ratio:.3f}",
            Verdict.HOLDS if right else Verdict.FAILS,
        ),
        Finding(
            BOUND,
            f"{violated} violations in {blocks:,} blocks of the search and {tiles:,} tiles of "
            f"weights; there the kept magnitude is {span(lost, '.1f')} % below the optimum on "
            "average",
            Verdict.FAILS if violated else Verdict.HOLDS,
        ),
        Finding(
            TIGHT,
            f"worst ratio found {below_two(best['confirmed'])} ({best['pattern']}); "
            f"{below_two(fours)} among 4 x 4 blocks, worse than the example's 7/4",
            Verdict.HOLDS if best["confirmed"] > 1.99 else Verdict.OPEN,
        ),
    ]


def below_two(ratio: float) -> str:
    """ "1.95", or "2 - 1e-06" where four digits would round to the bound itself."""
    return f"{ratio:.4f}" if ratio < 1.9999 else f"2 - {2 - ratio:.0e}"


def table(documents: Documents) -> str:
    document = documents["two_approx"]
    steps = [
        [
            str(number),
            f"({step['row'] + 1}, {step['col'] + 1})",
            f"{step['weight']:.4f}",
            _for_whom(step),
        ]
        for number, step in enumerate(document["example"]["steps"], start=1)
    ]
    searches = [
        [
            one["pattern"],
            f"{one['evaluated']:,}",
            f"{one['at_random']:.4f}",
            below_two(one["confirmed"]),
            "" if one["constructed"] is None else f"{one['constructed']:.4f}",
        ]
        for one in document["searches"]
    ]
    weights = [
        [
            f"{one['network']}, {one['pattern']}",
            f"{one['tiles']:,}",
            f"{one['ratio_mean']:.3f}",
            f"{one['ratio_worst']:.3f}",
            f"{100 * one['lost_mean']:.1f}",
            f"{100 * one['lost_worst']:.1f}",
            f"{one['density']:.3f}",
            f"{100 * one['repaired_lost_mean']:.2f}",
            f"{100 * one['repaired_lost_worst']:.1f}",
        ]
        for one in document["weights"]
    ]
    step_head = ["step", "entry", "weight", "taken because"]
    search_head = ["blocks", "evaluated", "worst at random", "worst found", "constructed"]
    weights_head = ["weights", "tiles", "W(P) / W*, all", "worst tile", "kept less than best, %"]
    weights_head += ["worst tile, %", "density", "repaired: less, %", "worst tile, %"]
    tables = (
        markdown(step_head, steps),
        markdown(search_head, searches),
        markdown(weights_head, weights),
    )
    return "\n\n".join(tables)


def _for_whom(step: dict[str, Any]) -> str:
    lines = [
        f"{kind} {step[place] + 1} lacks {step[f'{place}_lacks']}"
        for kind, place in (("row", "row"), ("column", "col"))
        if step[f"{place}_lacks"]
    ]
    return " and ".join(lines)


def draw(documents: Documents, folder: Path) -> None:
    """The block after every step, and the optimum."""
    example = documents["two_approx"]["example"]
    steps = [(step["row"], step["col"]) for step in example["steps"]]
    figure, panels = canvas(2, 4, (11, 5.9))
    flat = list(panels.flat)
    for number, panel in enumerate(flat[:-1], start=1):
        title = f"step {number}: {_for_whom(example['steps'][number - 1])}"
        taken, latest = steps[:number], steps[number - 1]
        _block(panel, example["block"], taken, latest, title.replace(": ", "\n"), "#D55E00")
    optimal = [tuple(place) for place in example["optimal"]]
    title = f"optimum: {example['least']:.3f}\n(the algorithm: {example['taken']:.3f})"
    _block(flat[-1], example["block"], optimal, None, title, "#0072B2")
    save(figure, folder / "two_approx.png")


def _block(
    panel: Any,
    block: list[list[float]],
    pruned: list[tuple[int, ...]],
    latest: tuple[int, ...] | None,
    title: str,
    colour: str,
) -> None:
    size = len(block)
    for i in range(size):
        for j in range(size):
            out = (i, j) in pruned
            new = (i, j) == latest
            panel.add_patch(
                _square(i, j, colour if out else "white", 0.95 if new else 0.45 if out else 1)
            )
            panel.text(
                j + 0.5,
                i + 0.5,
                f"{block[i][j]:.3f}" if block[i][j] < 1 else f"{block[i][j]:.0f}",
                ha="center",
                va="center",
                fontsize=9.5,
                color="white" if new else "#222222",
            )
    panel.set_xlim(-0.03, size + 0.03)
    panel.set_ylim(size + 0.03, -0.03)
    panel.set_aspect("equal")
    panel.axis("off")
    panel.set_title(title, fontsize=10.5)


def _square(i: int, j: int, colour: str, alpha: float) -> Any:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    return Rectangle((j, i), 1, 1, facecolor=to_rgba(colour, alpha), edgecolor="#333333")


SECTION = Section(
    name="two_approx",
    claims=(EXAMPLE, BOUND, TIGHT),
    sources={"two_approx": own("two_approx")},
    findings=findings,
    table=table,
    draw=draw,
)
