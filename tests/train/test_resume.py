"""A run stopped anywhere and resumed from its files goes on bit for bit."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transposable import MaskController, sparsify
from transposable.train import (
    SRSTE,
    SSTE,
    STE,
    DenseStart,
    DenseTail,
    Growing,
    MaskedDecay,
    Never,
    Recipe,
    Schedule,
    Static,
    Until,
)

STEPS, MICRO = 6, 3
RECIPES: list[Recipe] = [
    Static(),
    STE(),
    SRSTE(0.3),
    MaskedDecay(0.05),
    SSTE(),
    DenseTail(SRSTE(0.3), at=3),
    DenseTail(SSTE(), at=3),
    DenseStart(SSTE(), at=3),
    DenseStart(Static(), at=3),
]
SCHEDULES: list[int | Schedule] = [1, 2, Until(3, 1), Growing(1, factor=2.0), Never()]


@dataclass
class Run:
    """Everything that a training script has: model, optimizer, controller, where it stands."""

    model: nn.Module
    opt: torch.optim.Optimizer
    ctl: MaskController

    @classmethod
    def start(cls, recipe: Recipe, refresh: int | Schedule, adam: bool, seed: int = 0) -> Run:
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv1d(4, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(40, 8)
        )
        sparsify(model, {"0": "2:4", "3": "4:8T"})
        opt: torch.optim.Optimizer = (
            torch.optim.AdamW(model.parameters(), 0.05)
            if adam
            else torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        )
        return cls(model, opt, MaskController(model, recipe=recipe, refresh=refresh))

    def go_on(self, actions: list[tuple[int, int | None]]) -> None:
        for step, micro in actions:
            if micro is not None:
                x = torch.randn(5, 4, 5, generator=torch.Generator().manual_seed(step * 10 + micro))
                (self.model(x).square().mean() / MICRO).backward()
            else:
                self.opt.step()
                self.ctl.step()
                self.opt.zero_grad()

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save([part.state_dict() for part in (self.model, self.opt, self.ctl)], file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        states = torch.load(io.BytesIO(saved), weights_only=True)
        for part, state in zip((self.model, self.opt, self.ctl), states, strict=True):
            part.load_state_dict(state)


def actions() -> list[tuple[int, int | None]]:
    """Micro-batches (step, number) and optimizer steps (step, None), in order."""
    return [(step, micro) for step in range(STEPS) for micro in (*range(MICRO), None)]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}.{i}")
    else:
        yield path, value


def assert_equal(one: Run, other: Run) -> None:
    for mine, theirs in ((one.model, other.model), (one.opt, other.opt), (one.ctl, other.ctl)):
        expected = dict(leaves(theirs.state_dict()))
        found = dict(leaves(mine.state_dict()))
        assert found.keys() == expected.keys()
        for name, value in found.items():
            if ".seconds" in name:  # a wall time
                continue
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, expected[name]), name
            else:
                assert value == expected[name], name


@given(
    st.sampled_from(RECIPES),
    st.sampled_from(SCHEDULES),
    st.booleans(),
    st.lists(st.integers(0, STEPS * (MICRO + 1)), min_size=1, max_size=3).map(sorted),
)
@settings(deadline=None, max_examples=60)
def test_stopped_and_resumed(
    recipe: Recipe, refresh: int | Schedule, adam: bool, stops: list[int]
) -> None:
    """Between any two backward passes or steps, several times; the new process starts elsewhere."""
    whole = Run.start(recipe, refresh, adam)
    whole.go_on(actions())
    run = Run.start(recipe, refresh, adam)
    done = 0
    for number, stop in enumerate(stops, start=1):
        run.go_on(actions()[done:stop])
        saved, done = run.save(), stop
        run.ctl.close()
        run = Run.start(recipe, refresh, adam, seed=number)
        run.load(saved)
    run.go_on(actions()[done:])
    assert_equal(run, whole)


@given(st.sampled_from(RECIPES), st.permutations([0, 1, 2]))
@settings(deadline=None, max_examples=20)
def test_states_may_be_loaded_in_any_order(recipe: Recipe, order: list[int]) -> None:
    whole = Run.start(recipe, 2, adam=True)
    whole.go_on(actions())
    first = Run.start(recipe, 2, adam=True)
    first.go_on(actions()[:14])
    states = [part.state_dict() for part in (first.model, first.opt, first.ctl)]
    second = Run.start(recipe, 2, adam=True, seed=1)
    parts = (second.model, second.opt, second.ctl)
    for i in order:
        parts[i].load_state_dict(states[i])
    first.ctl.close()
    second.go_on(actions()[14:])
    assert_equal(second, whole)
