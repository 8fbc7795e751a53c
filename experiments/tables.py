"""From finished runs to the three things that are committed: result.json, figure.png, a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results -->", "<!-- /results -->"
Runs = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Score:
    """The figure of the runs by which each configuration is compared with its reference.

    Shown times ``scale``; with ``relative`` differences are shares of the reference.
    """

    key: str
    references: Mapping[str, str]
    scale: float = 1.0
    digits: int = 2
    relative: bool = False

    def of(self, run: dict[str, Any]) -> float:
        return self.scale * run[self.key]


def by_config(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each configuration, in the order of the document."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for run in document["runs"]:
        grouped.setdefault(run["config"], []).append(run)
    return grouped


def mean(runs: Runs, key: str) -> float:
    return statistics.fmean(run[key] for run in runs)


def spread(runs: Runs, score: Score) -> str:
    """Mean and, from two seeds on, the lowest and the highest value."""
    values, form = [score.of(run) for run in runs], f".{score.digits}f"
    text = format(statistics.fmean(values), form)
    if len(values) > 1:
        text += f" ({format(min(values), form)} to {format(max(values), form)})"
    return text


def paired(runs: Runs, reference: Runs, score: Score) -> float | None:
    """Mean difference to the reference over the seeds that both have, in percent if relative."""
    other = {run["seed"]: score.of(run) for run in reference}
    pairs = [(score.of(run), other[run["seed"]]) for run in runs if run["seed"] in other]
    if not pairs:
        return None
    return statistics.fmean(100 * (x / y - 1) if score.relative else x - y for x, y in pairs)


def compared(document: dict[str, Any], score: Score) -> Iterator[tuple[list[str], Runs]]:
    """The first cells of each configuration's row, and its runs.

    The cells: name, number of seeds, score, and difference to the reference; the last is empty for
    a reference, and where no seed has a run of both.
    """
    grouped = by_config(document)
    for config, runs in grouped.items():
        reference = score.references[config]
        difference = paired(runs, grouped.get(reference, []), score)
        empty = config == reference or difference is None
        against = "" if empty else f"{difference:+.2f}{' %' if score.relative else ''}"
        yield [config, str(len(runs)), spread(runs, score), against], runs


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_table(text: str, table: str) -> str:
    """A README with the table between its two markers replaced.

    Raises:
        ValueError: if a marker is not there exactly once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README: it must hold {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def table_in(text: str) -> str:
    """The table that a README shows."""
    return text.split(BEGIN)[1].split(END)[0].strip()


def publish(
    folder: Path,
    document: dict[str, Any],
    draw: Callable[[dict[str, Any], Path], None],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Write result.json, figure.png and the table in README.md of one experiment."""
    text = json.dumps(document, indent=1) + "\n"
    (folder / "result.json").write_text(text, encoding="utf-8")
    draw(document, folder / "figure.png")
    readme = folder / "README.md"
    readme.write_text(
        with_table(readme.read_text(encoding="utf-8"), table(document)), encoding="utf-8"
    )
