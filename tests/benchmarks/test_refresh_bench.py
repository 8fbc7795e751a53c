"""The refresh benchmark runs, its gate fails when it must, and its shares are what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import refresh, refresh_tables, workloads
from benchmarks.harness import Sample, Series
from benchmarks.refresh_tables import BEGIN, END, percent
from benchmarks.tables import MarkerError
from transposable import MaskController
from transposable.train import Refresh

QUICK = ["--quick", "--threads", "1", "--rounds", "2"]


def test_a_quick_run_measures_every_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(2)
    json_file, document = tmp_path / "r.json", tmp_path / "train.md"
    document.write_text("# Training\n\nText.\n")
    outputs = ["--json", str(json_file), "--markdown", str(document)]
    assert refresh.main([*QUICK, "--patterns", "4:8", "--strict", *outputs]) == 0
    assert torch.get_num_threads() == 2  # as it was

    results = json.loads(json_file.read_text())
    assert set(results["workloads"]) == set(workloads.NAMES)
    assert results["gate"]["layers"] == 6 + 4 + 4
    assert results["gate"]["tiles_certified"] > 500
    for entry in results["workloads"].values():
        assert entry["sparse_weights"] > 10_000
        measured = entry["patterns"]["4:8T"]
        times = measured["times"]
        assert set(times) == {"dense", "none", "exact", "two_approx"}
        assert times["dense"]["step"]["rounds"] == 2
        for kind in ("exact", "two_approx"):  # a refresh is part of the controller's time
            whole, resting = times[kind]["controller"], times["none"]["controller"]
            assert 0 < times[kind]["masks"]["wall_min_s"] < whole["wall_median_s"]
            assert whole["cpu_min_s"] > resting["cpu_min_s"]
        assert "masks" not in times["none"]
        assert measured["added"]["cpu"]["exact, every 40"]["median"] > 0
    assert not any(row["judged"] for row in results["targets"])
    assert len(results["targets"]) == 6

    printed = capsys.readouterr().out
    assert "gate passed: after a refresh the masks of 14 layers" in printed
    assert "these figures mean nothing" in printed
    text = document.read_text()
    assert text.startswith(f"# Training\n\nText.\n\n{refresh_tables.SECTION}\n\n{BEGIN}\n")
    assert "180 %" in text

    # A second time the table takes the place of the first, and what is around it stays.
    document.write_text(text + "\nMore.\n")
    again = ["--from-json", str(json_file), "--markdown", str(document)]
    assert refresh.main(again) == 0
    assert document.read_text() == text + "\nMore.\n"


def test_half_a_pair_of_markers_is_an_error(tmp_path: Path) -> None:
    results = {"machine": {}, "workloads": {}}
    document = tmp_path / "train.md"
    for text in (BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}"):
        document.write_text(text)
        with pytest.raises(MarkerError, match="needs one line"):
            refresh_tables.within_markers(document, text, BEGIN, END, str(results))


def _wrong_entry(controller: MaskController) -> Refresh:
    """A mask with the right counts that is not the best: two columns of tiles exchanged."""
    record = controller.refresh()
    layer = list(controller.layers.values())[-1]
    kept = layer.mask.clone()
    layer.mask[:, :8], layer.mask[:, 8:16] = kept[:, 8:16], kept[:, :8]
    return record


def _too_many(controller: MaskController) -> Refresh:
    record = controller.refresh()
    next(iter(controller.layers.values())).mask[0] = True
    return record


def _none(controller: MaskController) -> None:
    for layer in controller.layers.values():
        layer.mask.fill_(False)


@pytest.mark.parametrize("spoilt", [_wrong_entry, _too_many, _none])
def test_the_gate_stops_a_wrong_refresh(
    spoilt: Callable[[MaskController], object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    json_file = tmp_path / "r.json"
    options = [*QUICK, "--workloads", "block", "--patterns", "2:4", "--json", str(json_file)]
    assert refresh.main(options, spoilt) == refresh.EXIT_GATE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "so no time is reported\ngate: block, layer '0." in printed.err
    assert not json_file.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workloads", "vgg"], "'vgg' is none of resnet, gpt, block"),
        (["--patterns", "4:2"], "--patterns: "),
        (["--rounds", "1"], "need at least 2"),
        (["--threads", "0"], "at least 1"),
    ],
)
def test_options_are_checked(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        refresh.main(options)
    assert message in capsys.readouterr().err


def _series(*seconds: float) -> Series:
    return Series([Sample(wall, 2 * wall) for wall in seconds])


def test_the_shares() -> None:
    """Round by round: a quiet round is not set against a loud one."""
    steps = {
        "dense": {"step": _series(1.0, 2.0, 4.0)},
        "none": {"controller": _series(0.001, 0.002, 0.004), "term": _series(0.1, 0.2, 0.8)},
        "exact": {"controller": _series(0.041, 0.082, 0.164)},
        "two_approx": {"controller": _series(9.0, 9.0, 9.0), "masks": _series(0.2, 0.4, 0.8)},
    }
    shares = refresh.added(steps, "wall")
    assert shares["exact, every step"]["median"] == pytest.approx(0.041)
    assert shares["exact, every 40"]["median"] == pytest.approx(0.002)
    assert shares["2-approximation, every step"]["median"] == pytest.approx(0.201)
    assert shares["2-approximation, every 40"]["median"] == pytest.approx(0.24 / 40)
    assert shares["resting"]["median"] == pytest.approx(0.001)
    term = shares["gradient term"]
    assert (term["low"], term["median"], term["high"]) == pytest.approx((0.1, 0.1, 0.15))
    on_cpu = refresh.added(steps, "cpu")
    assert on_cpu["exact, every 40"]["median"] == pytest.approx(0.002)
    assert "2-approximation, every 40" not in on_cpu


def test_targets_are_judged_by_the_median() -> None:
    def entry(every_step: float, every_40: float) -> dict[str, Any]:
        added = {
            "exact, every step": {"median": every_step},
            "exact, every 40": {"median": every_40},
        }
        return {"patterns": {"2:4T": {"added": {"wall": added}}}}

    rows = refresh.judge({"a": entry(0.03, 0.0021), "b": entry(0.0301, 0.002)}, quick=False)
    assert [row["met"] for row in rows] == [True, False, False, True]
    assert all(row["judged"] for row in rows)


def test_percent() -> None:
    assert [percent(share) for share in (0.0131, 0.00052, 1.404, 0.0999)] == [
        "1.3 %",
        "0.052 %",
        "140 %",
        "10 %",
    ]
