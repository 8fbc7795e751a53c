"""The approximations on every instruction-set path of this machine give the same masks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from score_families import make_scores
from transposable import Entropic, Greedy, RowWise, TwoApprox, _core, solve

OTHERS = [path for path in _core.isas() if path != _core.isa()]


def outcomes() -> dict[str, list[float | str]]:
    """Objective and packed mask of every approximation on the active path."""
    found: dict[str, list[float | str]] = {}
    for family in ("|gaussian|", "|ties|", "gaussian", "|huge 1e38|"):
        scores = make_scores(family, 61, 83, 11)
        for pattern in ("2:4T", "3:7T", "4:8T", "8:16T", "16:32T"):
            for solver in (TwoApprox(), TwoApprox(repair=True), Greedy(), Entropic()):
                solution = solve(scores, pattern, solver)
                key = f"{family} {pattern} {solver}"
                found[key] = [solution.objective, solution.mask.pack().hex()]
        for pattern in ("2:4", "4:8", "8:16", "16:32", "5:9"):
            solution = solve(scores, pattern, RowWise())
            found[f"{family} {pattern}"] = [solution.objective, solution.mask.pack().hex()]
    return found


@pytest.mark.parametrize("path", OTHERS)
def test_another_path_gives_the_same_masks(path: str) -> None:
    code = (
        "import json, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from transposable import _core\n"
        "import test_approx_isa\n"
        f"assert _core.isa() == {path!r}\n"
        "json.dump(test_approx_isa.outcomes(), sys.stdout)\n"
    )
    search = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRANSPOSABLE_ISA": path, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, ours = json.loads(done.stdout), outcomes()
    assert theirs.keys() == ours.keys()
    for key, (objective, mask) in ours.items():
        if "Entropic" in key:  # fused multiplications round differently
            scale = 1e-3 * max(abs(objective), torch.finfo(torch.float32).tiny)
            assert theirs[key][0] == pytest.approx(objective, abs=scale), key
        else:
            assert theirs[key] == [objective, mask], key
