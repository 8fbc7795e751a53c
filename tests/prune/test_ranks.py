"""Pruning by two real processes, started once by torchrun; see rank_cases.py for what they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prune.rank_cases import CASES

HERE = Path(__file__).parent
RANKS = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(RANKS), str(HERE / "rank_worker.py"), str(folder)]
    paths = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    found = []
    for rank in range(RANKS):
        path = folder / f"rank{rank}.json"
        assert path.exists(), f"rank {rank} wrote nothing:\n{done.stderr[-3000:]}"
        found.append(json.loads(path.read_text()))
    return found


@pytest.mark.parametrize("name", CASES)
def test_with_two_processes(name: str, results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        assert name in result, f"rank {rank} did not come so far; the last was {list(result)[-1]}"
        assert result[name]["error"] is None, f"rank {rank}:\n{result[name]['error']}"
