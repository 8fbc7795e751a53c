"""The streams' tests again, under every instruction-set path that this machine can run.

The native core reads TRANSPOSABLE_ISA at its first call, so each path needs a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transposable import _core

TESTS = Path(__file__).with_name("test_stream.py")
OTHERS = [path for path in _core.isas() if path != _core.isa()]


@pytest.mark.parametrize("path", OTHERS)
def test_streams_on_another_path(path: str) -> None:
    code = (
        "import sys, pytest\n"
        "from transposable import _core\n"
        f"assert _core.isa() == {path!r}, _core.isa()\n"
        f"sys.exit(pytest.main(['-x', '-p', 'no:cacheprovider', {str(TESTS)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRANSPOSABLE_ISA": path},
        cwd=TESTS.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " [100%]" in done.stdout
