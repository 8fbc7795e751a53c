"""The costs of a refresh as tables: on the terminal (rich), and as Markdown in a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks import machine
from benchmarks.tables import markdown_table, print_table, seconds, within_markers

BEGIN: Final = "<!-- refresh:begin -->"
END: Final = "<!-- refresh:end -->"
SECTION: Final = "## What a refresh costs"

_COLUMNS: Final = {
    "gradient term": "gradient term",
    "exact, every step": "exact, every step",
    "exact, every 40": "exact, every 40",
    "2-approximation, every step": "2-approx., every step",
    "2-approximation, every 40": "2-approx., every 40",
}

NOTE: Final = (
    "Percent of the dense training step (bfloat16 autocast, forward, backward and optimizer), "
    "median of the rounds and quartiles. A refresh is all that `ctl.step()` does: masks of all "
    'layers, flip rate, kept magnitude, storing; "every 40" counts the calls that do not refresh '
    "as well. The 2-approximation is timed without the exact masks that `ctl.history` measures its "
    "gap against. The gradient term of SR-STE is the recipe's, whatever finds the masks."
)
PAPER: Final = (
    "For comparison, the paper's overhead on the training of ResNet-50, on its hardware: 180 % "
    "with integer programming, 70 % with its min-cost flow, 14 % with the 2-approximation, which "
    "it refreshed every 40 steps."
)


def percent(share: float) -> str:
    """A share with two significant digits: "1.3 %", "0.052 %", "140 %"."""
    return f"{_two_digits(share)} %"


def _two_digits(share: float) -> str:
    value = 100 * share
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def show(results: dict[str, Any]) -> None:
    """Print everything."""
    console = Console(width=150)
    console.print(f"\n{results['gate']['summary']}", highlight=False)
    console.print(_where(results))
    if results["quick"]:
        console.print("[bold]--quick: shows that it runs; these figures mean nothing[/bold]")
    for title, rows, note in (
        ("Steps", time_rows(results), ""),
        ("Added to the dense step, wall clock", cost_rows(results, "wall"), f"{NOTE} {PAPER}"),
        ("Added to the dense step, CPU time of all threads", cost_rows(results, "cpu"), ""),
        ("Targets", target_rows(results), ""),
    ):
        print_table(console, title, rows, note)


def time_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per network and pattern: medians in seconds."""
    rows = [
        [
            "network",
            "pattern",
            "sparse weights",
            "dense step",
            "step under masks",
            "gradient term",
            "ctl.step, no refresh",
            "ctl.step, exact",
            "masks, exact",
            "masks, 2-approx.",
        ]
    ]
    for entry, pattern, parts in _measured(results):
        times = parts["times"]

        def median(kind: str, part: str, times: dict[str, Any] = times) -> str:
            return seconds(times[kind][part]["wall_median_s"])

        rows.append(
            [
                entry["title"],
                pattern,
                f"{entry['sparse_weights']:,}",
                median("dense", "step"),
                median("none", "step"),
                median("none", "term"),
                median("none", "controller"),
                median("exact", "controller"),
                median("exact", "masks"),
                median("two_approx", "masks"),
            ]
        )
    return rows


def cost_rows(results: dict[str, Any], clock: str) -> list[list[str]]:
    """Heading and one row per network and pattern: shares with quartiles."""
    rows = [["network", "pattern", *_COLUMNS.values()]]
    for entry, pattern, parts in _measured(results):
        shares = parts["added"][clock]
        rows.append([entry["title"], pattern, *(_spread(shares.get(key)) for key in _COLUMNS)])
    return rows


def target_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per target."""
    rows = [["target", "network", "pattern", "value", "limit", ""]]
    for row in results["targets"]:
        verdict = "met" if row["met"] else "MISSED"
        rows.append(
            [
                row["target"],
                row["workload"],
                row["pattern"],
                percent(row["value"]),
                f"<= {percent(row['limit'])}",
                verdict if row["judged"] else "not judged: quick",
            ]
        )
    return rows


def markdown(results: dict[str, Any]) -> str:
    """The costs for a document."""
    costs = [
        [row[0], row[1], step, *row[2:]]
        for row, step in zip(
            cost_rows(results, "wall"), (row[3] for row in time_rows(results)), strict=True
        )
    ]
    lines = [
        f"{_where(results)}."
        + (" **A quick run: these figures mean nothing.**" if results["quick"] else ""),
        "",
        *markdown_table(costs),
        "",
        f"{NOTE} {PAPER}",
    ]
    return "\n".join(lines) + "\n"


def into_markdown(path: Path, results: dict[str, Any]) -> str:
    """The text of the file with the table between its markers; a section at its end if it has none.

    Raises:
        MarkerError: if the file has one marker, or more than a pair.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN not in text and END not in text:
        text = f"{text.rstrip()}\n\n{SECTION}\n\n{BEGIN}\n{END}\n".lstrip()
    return within_markers(path, text, BEGIN, END, markdown(results))


def _where(results: dict[str, Any]) -> str:
    threads = results["threads"]
    return f"{machine.sentence(results['machine'])}; {threads} thread{'s' if threads != 1 else ''}"


def _measured(results: dict[str, Any]) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    return [
        (entry, pattern, parts)
        for entry in results["workloads"].values()
        for pattern, parts in entry["patterns"].items()
    ]


def _spread(share: dict[str, float] | None) -> str:
    if share is None:
        return "-"
    low, high = _two_digits(share["low"]), _two_digits(share["high"])
    return f"{percent(share['median'])} ({low} to {high})"
