"""One section of the page: its claims, where its figures come from, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from experiments.paper.verdicts import Claim, Finding, Verdict

Documents = Mapping[str, Any]
"""Result files by the name under which a section asks for them."""

OKABE: Final = {
    "50%": ("#333333", "^"),
    "4:8": ("#0072B2", "o"),
    "2:4": ("#56B4E9", "o"),
    "4:8T": ("#D55E00", "D"),
    "2:4T": ("#E69F00", "D"),
    "4:8S": ("#CC79A7", "s"),
}
"""Colour and marker of a pattern: blue circles plain, orange diamonds transposable."""
DPI: Final = 110


@dataclass(frozen=True)
class Section:
    """``sources`` are paths below the project's root; the functions are called with all of them."""

    name: str
    claims: tuple[Claim, ...]
    sources: Mapping[str, str]
    findings: Callable[[Documents], list[Finding]]
    table: Callable[[Documents], str]
    draw: Callable[[Documents, Path], None] | None = None
    """Draws the section's pictures into a folder."""

    def absent(self, documents: Documents) -> list[str]:
        """The sources that were not found."""
        return [path for name, path in self.sources.items() if documents.get(name) is None]

    def judged(self, documents: Documents) -> list[Finding]:
        """A finding for each claim; without the sources all are "not measured"."""
        absent = self.absent(documents)
        if absent:
            text = f"{', '.join(absent)} not found"
            return [Finding(claim, text, Verdict.MISSING) for claim in self.claims]
        found = self.findings(documents)
        if [one.claim for one in found] != list(self.claims):
            raise RuntimeError(f"{self.name}: its findings are not those of its claims, in order")
        return found

    def shown(self, documents: Documents) -> str:
        """The section's tables."""
        absent = self.absent(documents)
        return f"Not measured: {', '.join(absent)} not found." if absent else self.table(documents)


def own(item: str) -> str:
    """Path of a result of this experiment."""
    return f"experiments/paper/results/{item}.json"


def canvas(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure and its panels, always as an array, without pyplot's global state."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        panels = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, panels


def save(figure: Any, file: Path) -> None:
    """As PNG, the same bytes for the same figures."""
    figure.savefig(file, dpi=DPI, metadata={"Software": None})


def span(values: list[float], form: str) -> str:
    """ "-0.9 to -0.2", or one figure where they are the same."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
