"""Processes of one process group: started here, what each of them wrote is gathered.

Without torchrun, which is one more process that imports torch; the documents' scripts run under it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RANKS = 2


def run_cases(worker: Path, folder: Path) -> list[dict[str, Any]]:
    """``rank0.json``, ``rank1.json`` of ``worker FOLDER``; a rank's environment is torchrun's."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    shared = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(RANKS)}
    started = []
    for rank in range(RANKS):
        with (folder / f"rank{rank}.txt").open("w") as said:
            process = subprocess.Popen(
                [sys.executable, str(worker), str(folder)],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=said,
                stderr=said,
            )
        started.append(process)
    try:
        for process in started:
            process.wait(400)
    finally:
        for process in started:
            process.kill()
            process.wait()
    found = []
    for rank in range(RANKS):
        path = folder / f"rank{rank}.json"
        said_by_rank = (folder / f"rank{rank}.txt").read_text()
        assert path.exists(), f"rank {rank} wrote nothing:\n{said_by_rank[-3000:]}"
        found.append(json.loads(path.read_text()))
    return found
