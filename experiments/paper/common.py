"""What all items of the paper share: the patterns, the folder of results, a time limit."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE / "results"
PATTERNS: Final = ("50%", "4:8", "2:4", "4:8T", "2:4T", "4:8S")
"""Those of the paper's figure 3, all of 50 %."""
TEST_IMAGES: Final = 5000


@dataclass
class Session:
    """Where one call of the command reads and works, and until when it starts new runs."""

    data: Path
    work: Path
    results: Path = RESULTS
    threads: int = 1
    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Whether the time given is spent; what is missing then waits for the next call."""
        return self.minutes is not None and time.monotonic() - self.started > 60 * self.minutes

    def need(self, item: str, names: list[str]) -> None:
        """Exit with the data files that are missing, if any is."""
        missing = sorted(name for name in names if not (self.data / name).exists())
        if missing:
            raise click.ClickException(
                f"paper, {item}: {', '.join(missing)} not found in {self.data}; this experiment "
                "ships no data; pass the folder that holds it with --data DIR"
            )

    def done(self, item: str) -> bool:
        """Whether an item has all its results; one that takes long may have a part of them."""
        found = load(self.results / f"{item}.json")
        return found is not None and found.get("runs") == found.get("planned")

    def save(self, item: str, document: dict[str, Any]) -> None:
        """Write the results of one item."""
        self.results.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1) + "\n"
        (self.results / f"{item}.json").write_text(text, encoding="utf-8")


def load(file: Path) -> dict[str, Any] | None:
    """A result as it was written, None if there is no such file."""
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
