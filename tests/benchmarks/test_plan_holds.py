"""The benchmark of the plan: it runs, its gate bites, its verdicts are those of intervals."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import plan_cases, plan_holds
from benchmarks.plan_cases import DENSE, MASKED, PLAN, TWIN


@pytest.fixture
def one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single layer, that of which nothing has to be loaded."""
    case = plan_cases.Case("a model", "4", nn.Linear(1030, 77), torch.randn(17, 1030), 1)
    monkeypatch.setattr(plan_holds, "cases", lambda quick, seed: [case])


GIVEN = ["--quick", "--patterns", "2:4", "--budget-seconds", "0.01"]


def test_a_quick_run(tmp_path: Path, one_layer: None, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "plan.json"
    assert plan_holds.main([*GIVEN, "--json", str(results)]) == 0
    found = json.loads(results.read_text())
    assert [one["pass"] for one in found["layers"]] == ["forward", "step"]
    for one in found["layers"]:
        assert one["layer"] == "4: 77x1030 on 17x1030"
        assert set(one["ms"]) == {PLAN, MASKED, TWIN, DENSE}
        for other in (MASKED, TWIN, DENSE):
            assert one[other]["low"] <= one[other]["median"] <= one[other]["high"]
    shown = capsys.readouterr().out
    assert "these figures mean nothing" in shown
    assert "gate passed" in shown
    assert "worst: " in shown


def test_every_kind_of_layer_is_there_once() -> None:
    found = list(plan_cases.cases(True, 0))
    kinds = [(case.model, tuple(case.layer.weight.shape), case.x.shape) for case in found]  # type: ignore[union-attr, arg-type]
    assert len(kinds) == len(set(kinds))
    assert len({case.model for case in found}) == 3
    odd = [case for case in found if case.model == "MLP of odd sizes"]
    assert [tuple(case.layer.weight.shape) for case in odd] == [(517, 301), (1030, 517), (77, 1030)]  # type: ignore[union-attr, arg-type]
    assert sum(case.times for case in found if case.model == "ResNet-8") == 6


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_wrong_number_stops_it(
    one_layer: None, monkeypatch: pytest.MonkeyPatch, which: int, capsys: pytest.CaptureFixture[str]
) -> None:
    right = plan_holds.calls

    def wrong(case: Any, pass_: Any, pattern: Any) -> dict[str, Callable[[], Any]]:
        made = right(case, pass_, pattern)
        if pass_ == "step":
            ours = made[PLAN]

            def broken() -> tuple[torch.Tensor, ...]:
                return tuple(t * (1.0001 if i == which else 1) for i, t in enumerate(ours()))

            made[PLAN] = broken
        return made

    monkeypatch.setattr(plan_holds, "calls", wrong)
    assert plan_holds.main(GIVEN) == plan_holds.EXIT_GATE
    captured = capsys.readouterr()
    assert "step of 4: 77x1030" in captured.err
    assert "worst" not in captured.out


def test_a_slower_layer_is_seen(one_layer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def times(made: Any, seconds: float, clock: Any) -> dict[str, list[float]]:
        return {name: [1.05 if name == PLAN else 1.0] * 20 for name in made}

    monkeypatch.setattr(plan_holds, "in_turns", times)
    assert plan_holds.main(GIVEN) == 0
    assert plan_holds.main([*GIVEN, "--strict"]) == plan_holds.EXIT_SLOWER


def test_intervals_cover_the_median() -> None:
    """Of 400 samples about 95 % hold it."""
    draw = random.Random(0)
    inside = 0
    for _ in range(400):
        found = plan_holds.interval([draw.expovariate(1.0) for _ in range(31)], [1.0] * 31)
        inside += found["low"] <= 0.6931 <= found["high"]
    assert 0.92 <= inside / 400 <= 0.99


def test_calls_are_timed_in_turns() -> None:
    """By a clock that stands still but for the calls."""
    now, order = [0.0], []

    def call(name: str, takes: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            now[0] += takes

        return run

    found = plan_holds.in_turns({"a": call("a", 1.0), "b": call("b", 2.0)}, 0.0, lambda: now[0])
    assert found == {"a": [1.0] * plan_holds.FEWEST, "b": [2.0] * plan_holds.FEWEST}
    rounds = [tuple(order[i : i + 2]) for i in range(4, len(order), 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}
