"""The exact solver's tests again, under every instruction-set path that this machine can run.

The native core reads TRANSPOSABLE_ISA at its first call, so each path needs a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transposable import _core

VARIABLE = "TRANSPOSABLE_ISA"
# The active path is what test_exact.py itself runs.
OTHERS = [path for path in _core.isas() if path != _core.isa()]


def test_the_paths_of_this_machine() -> None:
    assert "baseline" in _core.isas()
    assert _core.isa() in _core.isas()
    wanted = os.environ.get(VARIABLE)
    assert wanted is None or _core.isa() == wanted


def test_a_path_that_is_none() -> None:
    code = "import torch, transposable; transposable.find_mask(torch.ones(4, 4), '2:4T')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, VARIABLE: "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "TRANSPOSABLE_ISA=sse9: this machine runs" in done.stderr


@pytest.mark.parametrize("path", OTHERS)
def test_the_exact_solver_on_another_path(path: str) -> None:
    code = (
        "import sys, pytest\n"
        "from transposable import _core\n"
        f"assert _core.isa() == {path!r}, _core.isa()\n"
        f"sys.exit(pytest.main(['-x', '-p', 'no:cacheprovider', {str(exact_tests())!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, VARIABLE: path},
        cwd=exact_tests().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def exact_tests() -> Path:
    return Path(__file__).with_name("test_exact.py")
