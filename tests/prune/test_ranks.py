"""Pruning by two real processes, started once; see rank_cases.py for what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prune.rank_cases import CASES
from started_ranks import run_cases

WORKER = Path(__file__).with_name("rank_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_cases(WORKER, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_with_two_processes(name: str, results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        assert name in result, f"rank {rank} did not come so far; the last was {list(result)[-1]}"
        assert result[name]["error"] is None, f"rank {rank}:\n{result[name]['error']}"
