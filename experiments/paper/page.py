"""docs/paper.md: what stands between its markers is written from the results and from nothing else.

python -m experiments.paper --parts page
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from experiments.paper.common import HERE, load
from experiments.paper.shown import (
    adaprune,
    diversity,
    flow,
    matmul,
    overhead,
    retention,
    training,
    two_approx,
)
from experiments.paper.shown.base import Documents, Section
from experiments.paper.verdicts import Finding, Verdict
from experiments.tables import markdown

ROOT: Final = HERE.parents[1]
PAGE: Final = ROOT / "docs" / "paper.md"
SECTIONS: Final[tuple[Section, ...]] = (
    diversity.SECTION,
    retention.SECTION,
    flow.SECTION,
    two_approx.SECTION,
    overhead.SECTION,
    training.SECTION,
    adaprune.SECTION,
    matmul.SECTION,
)
HEAD: Final = ("the paper says", "where", "what we measured", "verdict")
SPOKEN: Final = {
    Verdict.HOLDS: ("holds", "hold"),
    Verdict.PARTLY: ("holds in part", "hold in part"),
    Verdict.FAILS: ("does not hold", "do not hold"),
    Verdict.DIFFERS: ("differs", "differ"),
    Verdict.OPEN: ("is not settled", "are not settled"),
    Verdict.MISSING: ("was not measured", "were not measured"),
}
_BLOCK: Final = r"<!-- paper:{0} -->\n.*?<!-- /paper:{0} -->"


def write(root: Path = ROOT) -> None:
    """Draw all figures and renew the page."""
    documents = read(root)
    for section in SECTIONS:
        if section.draw is not None and not section.absent(documents[section.name]):
            section.draw(documents[section.name], HERE)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_blocks(text, blocks(documents)), encoding="utf-8")


def read(root: Path = ROOT) -> dict[str, Documents]:
    """The result files of every section; a file that is not there is None."""
    folder = root / "benchmarks" / "results"
    gpu = {file.name: load(file) for file in sorted(folder.glob("gpu_*.json"))}
    return {
        section.name: {
            **{name: load(root / path) for name, path in section.sources.items()},
            "gpu": gpu,
        }
        for section in SECTIONS
    }


def findings(documents: dict[str, Documents]) -> list[Finding]:
    """All rows of the table."""
    return [one for section in SECTIONS for one in section.judged(documents[section.name])]


def blocks(documents: dict[str, Documents]) -> dict[str, str]:
    """The text between each pair of markers."""
    rows = findings(documents)
    return {
        "verdicts": markdown_left(HEAD, [one.cells() for one in rows]),
        "summary": summary(rows),
        "rules": "\n".join(f"- *{one.claim.text}*: {one.claim.rule}" for one in rows),
        **{section.name: section.shown(documents[section.name]) for section in SECTIONS},
    }


def summary(rows: list[Finding]) -> str:
    """How many claims got which verdict."""
    parts = []
    for verdict, (one, many) in SPOKEN.items():
        count = sum(row.verdict is verdict for row in rows)
        if count:
            parts.append(f"{count} {one if count == 1 else many}")
    return f"Of {len(rows)} claims {', '.join(parts)}."


def markdown_left(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table of texts."""
    return markdown(head, rows).replace(" ---: ", " --- ")


def with_blocks(text: str, found: dict[str, str]) -> str:
    """The page with all its blocks renewed.

    Raises:
        ValueError: if a block's markers are not there exactly once, or name no block.
    """
    named = re.findall(r"<!-- paper:(\w+) -->", text)
    if sorted(named) != sorted(found):
        raise ValueError(
            f"docs/paper.md: it must hold <!-- paper:NAME --> and <!-- /paper:NAME --> once for "
            f"each of {', '.join(sorted(found))}; it holds {', '.join(sorted(named))}"
        )
    for name, block in found.items():
        new = f"<!-- paper:{name} -->\n{block}\n<!-- /paper:{name} -->"
        text, count = re.subn(_BLOCK.format(name), lambda _, new=new: new, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"docs/paper.md: <!-- /paper:{name} --> does not follow its beginning")
    return text


def shown_in(text: str, name: str) -> str:
    """A block as a page holds it."""
    found: Any = re.search(_BLOCK.format(name), text, flags=re.DOTALL)
    return str(found.group(0)).split("\n", 1)[1].rsplit("\n", 1)[0]
