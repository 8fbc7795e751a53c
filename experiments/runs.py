"""Finished and unfinished runs: what is done is not done again, what was cut off goes on.

One run is one configuration with one seed. Its result is a JSON file, its checkpoint a file that
exists only while it is unfinished. Several processes may work on different runs of one folder.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Run:
    """One configuration with one seed; ``settings`` is everything else its result depends on."""

    config: str
    seed: int
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        plain = "".join(c if c.isalnum() else "-" for c in self.config)
        return f"{plain}.{self.seed}"


class RunStore:
    """Results and checkpoints of one experiment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def result(self, run: Run) -> dict[str, Any] | None:
        """The result of a finished run, None if it is not finished.

        Raises:
            RuntimeError: if the result was made under other settings.
        """
        file = self._result_file(run)
        if not file.is_file():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        self._same(run, found["settings"], file)
        return found

    def finish(self, run: Run, result: dict[str, Any]) -> dict[str, Any]:
        """Keep the result of a run and drop its checkpoint."""
        document = {
            "config": run.config,
            "seed": run.seed,
            "settings": run.settings,
            **result,
            "machine": machine(),
        }
        file = self._result_file(run)
        text = json.dumps(document, indent=1) + "\n"
        _replace(file, lambda part: part.write_text(text, encoding="utf-8"))
        self._checkpoint_file(run).unlink(missing_ok=True)
        return document

    def results(self, configs: Sequence[str]) -> list[dict[str, Any]]:
        """All finished runs of these configurations, in their order and by seed."""
        files = self.folder.glob("*.json")
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        chosen = [document for document in found if document["config"] in configs]
        return sorted(chosen, key=lambda d: (configs.index(d["config"]), d["seed"]))

    def checkpoint(self, run: Run) -> dict[str, Any] | None:
        """The last state that `keep` stored, None if there is none.

        Raises:
            RuntimeError: if the checkpoint was made under other settings.
        """
        file = self._checkpoint_file(run)
        if not file.is_file():
            return None
        found = torch.load(file, weights_only=False)
        self._same(run, found["settings"], file)
        return found["state"]

    def keep(self, run: Run, state: dict[str, Any]) -> None:
        """Store the state of an unfinished run: the whole of it or, if killed meanwhile, none."""
        document = {"settings": run.settings, "state": state}
        _replace(self._checkpoint_file(run), lambda part: torch.save(document, part))

    def _result_file(self, run: Run) -> Path:
        return self.folder / f"{run.key}.json"

    def _checkpoint_file(self, run: Run) -> Path:
        return self.folder / f"{run.key}.pt"

    def _same(self, run: Run, settings: dict[str, Any], file: Path) -> None:
        # As JSON, which knows no tuples: a checkpoint has them still, a result has not.
        if json.dumps(settings, sort_keys=True) != json.dumps(run.settings, sort_keys=True):
            raise RuntimeError(
                f"{run.config}, seed {run.seed}: {file} was made with {settings}, this run has "
                f"{run.settings}; move {self.folder} away or pass another folder with --work"
            )


def machine() -> dict[str, Any]:
    """What the timings and, to the last digit, the results depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _replace(file: Path, write: Any) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    write(part)
    os.replace(part, file)
