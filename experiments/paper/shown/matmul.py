"""The speed of the products on the page, and the ceiling for a whole step, from the benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks import machine
from benchmarks.matmul_peers import DIRECTIONS, TORCH
from benchmarks.matmul_targets import LEAST_TOKENS
from experiments.paper.shown.base import Documents, Section, canvas, save, span
from experiments.paper.verdicts import Claim, Finding, Verdict
from experiments.tables import markdown

IDEAL: Final = (2.0, 2.0, 1.0)
"""Forward, input gradient, weight gradient: what the paper promises at 50 %."""
HALF: Final = 0.5
AGAINST: Final = ("best", "torch")
SPARSE_ROW: Final = "exact mask every 40, SR-STE (dense weight gradient)"
"""The step that the paper has in mind: two of three products are sparse."""
WIDTH: Final = 1024
CPU = Claim(
    "At 50 % the products of the forward pass and of the input gradient take half of the time",
    "2x in the matmuls",
    "Holds if for every transposable 50 % pattern both medians (float32, one thread, at least "
    f"{LEAST_TOKENS} tokens) reach 2 against the best dense product on this processor; else it "
    "differs: the paper has sparse tensor cores in mind.",
)
STEP = Claim(
    "2 of the 3 products of a layer at 2x: at best 1.5x for a step (Amdahl)",
    "follows from the claim above",
    "Holds if no measured step whose weight gradients stay dense is faster than 1.5x against the "
    "best dense products, oneDNN's.",
)
GPU = Claim(
    "The same on sparse tensor cores",
    "2x in the matmuls",
    "Only what benchmarks/results/gpu_*.json holds is judged, by the rule of the CPU; otherwise "
    "not measured.",
)


def ratios(section: dict[str, Any], pattern: str, direction: str, against: str) -> list[float]:
    """Dense time over sparse time of all products of a section that count."""
    return [
        case["patterns"][pattern]["ratios"][against]["wall"]["median"]
        for case in section["cases"]
        if case["direction"] == direction
        and case["tokens"] >= LEAST_TOKENS
        and pattern in case["patterns"]
        and against in case["patterns"][pattern]["ratios"]
    ]


def half_patterns(section: dict[str, Any]) -> list[str]:
    """The section's patterns of 50 %."""
    found = section["cases"][0]["patterns"]
    return [name for name, parts in found.items() if parts["density"] == HALF]


def together(forward: float, inputs: float, weights: float) -> float:
    """Gain of the three products of a layer, each as large as the others.

    Example:
        >>> together(2, 2, 1)
        1.5
    """
    return 3 / (1 / forward + 1 / inputs + 1 / weights)


def step_gain(share: float, gain: float) -> float:
    """Amdahl: the gain of a step whose products take this share of its time.

    Example:
        >>> round(step_gain(0.8, 1.5), 3)
        1.364
    """
    return 1 / (1 - share + share / gain)


def _main(documents: Documents) -> dict[str, Any]:
    sections: list[dict[str, Any]] = documents["matmul"]["sections"]
    return next(
        s for s in sections if s["dtype"] == "float32" and s["threads"] == 1 and not s["isa"]
    )


def _medians(section: dict[str, Any], pattern: str, against: str) -> tuple[float, float, float]:
    forward, inputs, weights = (
        statistics.median(ratios(section, pattern, direction, against)) for direction in DIRECTIONS
    )
    return forward, inputs, weights


def _steps(documents: Documents) -> Iterator[tuple[dict[str, Any], float, float]]:
    """Training runs of a block with the gain of the sparse step against torch and oneDNN."""
    for one in documents["block"]["training"]:
        row = one["rows"][SPARSE_ROW]
        yield one, row["ratio"]["wall"]["median"], row["onednn"]["wall"]["median"]


def findings(documents: Documents) -> list[Finding]:
    section = _main(documents)
    found = [_medians(section, pattern, "best")[:2] for pattern in half_patterns(section)]
    torch = [_medians(section, pattern, "torch")[:2] for pattern in half_patterns(section)]
    each = [value for pair in found for value in pair]
    steps = list(_steps(documents))
    best = [onednn for *_, onednn in steps]
    return [
        Finding(
            CPU,
            f"{span(each, '.2f')}x of the best dense product, "
            f"{span([v for pair in torch for v in pair], '.1f')}x of torch's "
            f"({', '.join(half_patterns(section))})",
            Verdict.HOLDS if min(each) >= 2 else Verdict.DIFFERS,
            ""
            if min(each) >= 2
            else "a CPU has no sparse multiply-add; gathering the samples costs a part of the half",
        ),
        Finding(
            STEP,
            f"a transformer block's step, masks every 40 steps, SR-STE: {span(best, '.2f')}x of "
            f"oneDNN's, {span([t for _, t, _ in steps], '.2f')}x of torch's",
            Verdict.HOLDS if max(best) <= 1.5 else Verdict.FAILS,
        ),
        _gpu(documents["gpu"]),
    ]


def _gpu(documents: dict[str, Any]) -> Finding:
    if not documents:
        return Finding(GPU, "no GPU was at hand", Verdict.MISSING)
    readable = [
        section
        for document in documents.values()
        if isinstance(document, dict)
        for section in document.get("sections", [])
        if isinstance(section, dict) and section.get("cases")
    ]
    each = [
        statistics.median(found)
        for section in readable
        for pattern in half_patterns(section)
        for direction in DIRECTIONS[:2]
        if (found := ratios(section, pattern, direction, "best"))
    ]
    if not each:
        text = f"{', '.join(documents)} holds no table of products that this page reads"
        return Finding(GPU, text, Verdict.MISSING)
    verdict = Verdict.HOLDS if min(each) >= 2 else Verdict.DIFFERS
    return Finding(GPU, f"{span(each, '.2f')}x of the best dense product", verdict)


def products_share(documents: Documents, step_s: float, against: str, tokens: int = 2048) -> float:
    """About what share of a dense step of a block its 12 width^2 weights' products take.

    At the rate measured for 1024 -> 4096 with the most tokens, in each direction.
    """
    cases = [c for c in _main(documents)["cases"] if (c["in"], c["out"]) == (WIDTH, 4 * WIDTH)]
    most = max(case["tokens"] for case in cases)
    work = 2 * 12 * WIDTH**2 * tokens
    total = 0.0
    for case in cases:
        if case["tokens"] == most:
            name = TORCH[case["direction"]] if against == "torch" else against
            total += work / case["flops"] * case["dense"][name]["wall_median_s"]
    return total / step_s


def table(documents: Documents) -> str:
    rows = []
    for section in documents["matmul"]["sections"]:
        for pattern in section["patterns"]:
            row = [f"{section['title']}, {pattern}"]
            for against in AGAINST:
                row += [f"{value:.2f}" for value in _medians(section, pattern, against)]
                row.append(f"{together(*_medians(section, pattern, against)):.2f}")
            rows.append(row)
    head = ["products"]
    for against in AGAINST:
        head += [f"forward / {against}", "input gradient", "weight gradient", "all three"]
    parts = [machine.sentence(documents["matmul"]["machine"]) + ".", "", markdown(head, rows), ""]
    steps = []
    for one, torch, onednn in _steps(documents):
        dense = one["dense"]["wall_median_s"]
        fast = one["rows"]["dense, oneDNN"]["time"]["wall_median_s"]
        shares = (
            (products_share(documents, dense, "torch"), products_share(documents, fast, "oneDNN"))
            if one["threads"] == 1
            else (None, None)
        )
        cells = []
        for share, gain in zip(shares, (torch, onednn), strict=True):
            cells.append("" if share is None else f"{100 * share:.0f} %")
            cells.append(
                "" if share is None else f"{step_gain(min(share, 1), together(*IDEAL)):.2f}"
            )
            cells.append(f"{gain:.2f}")
        steps.append(
            [f"{one['pattern']}, {one['threads']} thread{'s' * (one['threads'] > 1)}", *cells]
        )
    head = ["step of a block"]
    for against in ("torch", "oneDNN"):
        head += [f"products' share, {against}", "ceiling at 2x, 2x, 1x", "measured"]
    return "\n".join([*parts, markdown(head, steps)])


def draw(documents: Documents, folder: Path) -> None:
    """Gain of a step against the share of the products, ideal and with the measured products."""
    figure, panels = canvas(1, 1, (7.6, 4.6))
    panel = panels[0][0]
    shares = [step / 50 for step in range(51)]
    section = _main(documents)
    lines: list[tuple[str, tuple[float, float, float], str, str]] = [
        ("ideal: 2x, 2x, weight gradient dense", IDEAL, "#333333", "-"),
        ("ideal with a sparse weight gradient: 2x, 2x, 2x", (2.0, 2.0, 2.0), "#333333", ":"),
    ]
    for pattern, colour in zip(
        half_patterns(section), ("#E69F00", "#D55E00", "#CC79A7"), strict=False
    ):
        forward, inputs, _ = _medians(section, pattern, "best")
        name = f"{pattern}: {forward:.2f}x, {inputs:.2f}x of the best dense"
        lines.append((name, (forward, inputs, 1.0), colour, "--"))
    for name, gains, colour, line in lines:
        gain = together(*gains)
        panel.plot(
            [100 * share for share in shares],
            [step_gain(share, gain) for share in shares],
            color=colour,
            linestyle=line,
            label=name,
            linewidth=2,
        )
    for one, _, onednn in _steps(documents):
        if one["threads"] != 1:
            continue
        fast = one["rows"]["dense, oneDNN"]["time"]["wall_median_s"]
        share = min(products_share(documents, fast, "oneDNN"), 1)
        colour = "#E69F00" if one["pattern"] == "2:4T" else "#D55E00"
        label = f"{one['pattern']}: measured step of a block against oneDNN"
        panel.plot(100 * share, onednn, "D", color=colour, markersize=9, label=label, mec="k")
    panel.set_xlabel("share of the products in a dense step, %")
    panel.set_ylabel("times faster")
    panel.set_ylim(0.8, 2.9)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.legend(frameon=False, fontsize=9.5, loc="upper left")
    save(figure, folder / "matmul.png")


SECTION = Section(
    name="matmul",
    claims=(CPU, STEP, GPU),
    sources={
        "matmul": "benchmarks/results/matmul.json",
        "block": "benchmarks/results/block.json",
    },
    findings=findings,
    table=table,
    draw=draw,
)
