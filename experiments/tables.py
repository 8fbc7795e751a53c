"""From finished runs to the three things that are committed: result.json, figure.png, a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results -->", "<!-- /results -->"


def by_config(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each configuration, in the order of the document."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for run in document["runs"]:
        grouped.setdefault(run["config"], []).append(run)
    return grouped


def mean(runs: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.fmean(run[key] for run in runs)


def spread(runs: Sequence[dict[str, Any]], key: str, form: str) -> str:
    """Mean and, from two seeds on, the lowest and the highest value."""
    values = [run[key] for run in runs]
    text = format(statistics.fmean(values), form)
    if len(values) > 1:
        text += f" ({format(min(values), form)} to {format(max(values), form)})"
    return text


def paired(
    runs: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], key: str
) -> float | None:
    """Mean difference to the reference over the seeds that both have."""
    other = {run["seed"]: run[key] for run in reference}
    pairs = [run[key] - other[run["seed"]] for run in runs if run["seed"] in other]
    return statistics.fmean(pairs) if pairs else None


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
