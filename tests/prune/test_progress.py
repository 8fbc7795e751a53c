"""Who is told how far a run is: nobody by default, people by a bar, programs by a call."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prune import killed
from transposable.prune import prune_model


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for progress in (None, False):
        prune_model(killed.model(), "2:4T", calibration=killed.data(), progress=progress)
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    prune_model(killed.model(), "2:4T", calibration=killed.data(), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err
    assert "ETA" in err


def test_a_function() -> None:
    said: list[tuple[float, str]] = []
    report = prune_model(
        killed.model(),
        "2:4T",
        calibration=killed.data(),
        progress=lambda share, name: said.append((share, name)),
    )
    assert [name for _, name in said] == [layer.name for layer in report.layers]
    assert [share for share, _ in said] == [(n + 1) / 10 for n in range(10)]


def test_rich_is_imported_when_it_is_needed() -> None:
    code = (
        "import sys, torch; from torch import nn; from transposable.prune import prune_model\n"
        "prune_model(nn.Sequential(nn.Linear(8, 8)), '2:4T', 'magnitude')\n"
        "sys.exit('rich' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
