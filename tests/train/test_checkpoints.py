"""States of the controller: read by a safe loader, refused when they do not fit, and complete."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transposable import CheckpointError, MaskController, sparsify
from transposable.nn import sparse_layers
from transposable.train import (
    SRSTE,
    SSTE,
    STE,
    DenseStart,
    DenseTail,
    Every,
    Growing,
    MaskedDecay,
    Never,
    Recipe,
    Schedule,
    Static,
    Until,
)

RECIPES: list[Recipe] = [
    Static(),
    STE(),
    SRSTE(0.3),
    MaskedDecay(0.05),
    SSTE(),
    DenseTail(Static(), at=3),
    DenseTail(SSTE(), at=3),
    DenseStart(SSTE(), at=3),
    DenseStart(Static(), at=3),
]
SCHEDULES: list[Schedule] = [Every(1), Every(2), Until(3, 1), Growing(1, 2.0), Never()]
STEPS, MICRO = 6, 2
LAST = STEPS * (MICRO + 1)
PARTS = ("model", "opt", "lr", "ctl")
PATTERNS = {"0": "2:4T", "3": "4:8T"}


class Script:
    """A training script with everything that has a state, a schedule of learning rates too."""

    def __init__(
        self,
        recipe: Recipe,
        refresh: Schedule,
        optimizer: str,
        *,
        solver: str = "auto",
        patterns: dict[str, str] = PATTERNS,
        seed: int = 0,
        late: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Conv2d(4, 8, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 4)
        )
        sparsify(self.model, patterns)
        kinds: dict[str, Any] = {
            "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
            "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
            "fused": lambda p: torch.optim.AdamW(p, 0.05, fused=True),
        }
        self.opt: torch.optim.Optimizer = kinds[optimizer](self.model.parameters())
        self.lr = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, STEPS)
        self.settings = (recipe, refresh, solver)
        self.ctl: Any = None
        if not late:
            self.make_controller()

    def make_controller(self) -> None:
        self.ctl = MaskController(self.model, *self.settings)

    def go_on(self, start: int, stop: int) -> None:
        for number in range(start, stop):
            micro = number % (MICRO + 1)
            if micro < MICRO:
                random = torch.Generator().manual_seed(number)
                x = torch.randn(4, 4, 3, 3, generator=random)
                (self.model(x).square().mean() / MICRO).backward()
            else:
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.05)
                self.opt.step()
                self.ctl.step()
                self.opt.zero_grad()
                self.lr.step()

    def save(self) -> dict[str, Any]:
        file = io.BytesIO()
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        torch.save(parts, file)
        file.seek(0)
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
        return loaded

    def load(self, saved: dict[str, Any], order: Sequence[str] = PARTS) -> None:
        for part in order:
            if part == "ctl" and self.ctl is None:
                self.make_controller()
            getattr(self, part).load_state_dict(saved[part])

    def everything(self) -> dict[str, torch.Tensor]:
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for number, state in self.opt.state_dict()["state"].items():
            found |= {f"opt.{number}.{k}": v for k, v in state.items() if v is not None}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                found[f"grad.{name}"] = parameter.grad
        found["lr"] = torch.tensor(self.lr.get_last_lr(), dtype=torch.float64)
        found["steps"] = torch.tensor(self.ctl.steps)
        rows = [(r.step, r.flip_rate, r.kept, r.gap) for r in self.ctl.history]
        found["history"] = torch.tensor(rows, dtype=torch.float64)
        weightings = {"masked": 0, "soft": 1, "dense": 2}
        for name, layer in sparse_layers(self.model).items():
            found[f"weighting.{name}"] = torch.tensor(weightings[layer.weighting])
        return found

    def must_equal(self, other: Script) -> None:
        mine, theirs = self.everything(), other.everything()
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name


@given(
    recipe=st.sampled_from(RECIPES),
    refresh=st.sampled_from(SCHEDULES),
    optimizer=st.sampled_from(["sgd", "adamw", "fused"]),
    stop=st.integers(0, LAST),
    order=st.permutations(PARTS),
    late=st.booleans(),
)
@settings(max_examples=40)
def test_stopped_anywhere_and_loaded_in_any_order(
    recipe: Recipe, refresh: Schedule, optimizer: str, stop: int, order: list[str], late: bool
) -> None:
    """With the controller made at the start, or (late) when its own state is loaded."""
    straight = Script(recipe, refresh, optimizer)
    straight.go_on(0, LAST)
    first = Script(recipe, refresh, optimizer)
    first.go_on(0, stop)
    saved = first.save()
    second = Script(recipe, refresh, optimizer, seed=1, late=late)
    second.load(saved, order)
    second.must_equal(first)
    second.go_on(stop, LAST)
    second.must_equal(straight)


@given(stop=st.integers(0, LAST), recipe=st.sampled_from(RECIPES))
@settings(max_examples=12)
def test_going_back_in_the_same_process(stop: int, recipe: Recipe) -> None:
    """Loading an earlier checkpoint undoes all that came after it, pending gradients included."""
    script = Script(recipe, Every(1), "adamw")
    script.go_on(0, stop)
    saved, before = script.save(), Script(recipe, Every(1), "adamw")
    before.go_on(0, stop)
    script.go_on(stop, LAST - 1)
    script.load(copy.deepcopy(saved))
    if before.opt.state:  # torch keeps an optimizer's state that a checkpoint does not have
        script.must_equal(before)
    script.go_on(stop, LAST)
    before.go_on(stop, LAST)
    if stop > MICRO:
        script.must_equal(before)


@pytest.mark.parametrize("moment", ["term added", "optimizer stepped"])
def test_stopped_inside_a_step(moment: str) -> None:
    """Between before_step and opt.step, or between opt.step and ctl.step: no term twice."""
    runs = []
    for stop in (False, True):
        script = Script(SRSTE(0.3), Every(1), "sgd")
        script.go_on(0, 2 * MICRO + 1)
        script.ctl.before_step()
        if moment == "optimizer stepped":
            script.opt.step()
        if stop:
            saved = script.save()
            script = Script(SRSTE(0.3), Every(1), "sgd", seed=3)
            script.load(saved, ("ctl", "model", "opt", "lr"))
            with pytest.raises(Exception, match="has its term"):
                script.ctl.before_step()
        if moment == "term added":
            script.opt.step()
        script.ctl.step()
        script.opt.zero_grad()
        script.lr.step()
        script.go_on(2 * (MICRO + 1), LAST)
        runs.append(script)
    runs[0].must_equal(runs[1])


STOP = 4 * (MICRO + 1) + 1


def saved_run() -> tuple[Script, dict[str, Any]]:
    """A run after four steps and one backward pass, and its controller's state."""
    script = Script(SRSTE(0.3), Every(2), "sgd")
    script.go_on(0, STOP)
    return script, script.save()["ctl"]


def assert_refused(script: Script, state: Any, match: str, **options: Any) -> None:
    before = {name: value.clone() for name, value in script.everything().items()}
    with pytest.raises(CheckpointError, match=match) as error:
        script.ctl.load_state_dict(state, **options)
    assert str(error.value).startswith("MaskController.load_state_dict: ")
    for name, value in script.everything().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("recipe", "refresh", "solver", "match"),
    [
        (SRSTE(0.2), Every(2), "auto", r"the recipe is SRSTE\(decay=0.2\).*SRSTE\(decay=0.3\)"),
        (STE(), Every(2), "auto", r"the recipe is STE\(\)"),
        (DenseTail(SRSTE(0.3), at=9), Every(2), "auto", "the recipe is DenseTail"),
        (SRSTE(0.3), Every(3), "auto", r"the refresh is Every\(period=3\).*Every\(period=2\)"),
        (SRSTE(0.3), Until(8, 2), "auto", "the refresh is Until"),
        (SRSTE(0.3), Every(2), "two_approx", "the solver is TwoApprox.*Auto"),
    ],
)
def test_another_run_is_refused_unless_asked_for(
    recipe: Recipe, refresh: Schedule, solver: str, match: str
) -> None:
    _, state = saved_run()
    other = Script(recipe, refresh, "sgd", solver=solver, seed=1)
    other.go_on(0, 2)
    assert_refused(other, state, match)
    other.ctl.load_state_dict(state, strict=False)
    assert other.ctl.steps == 4
    assert [record.step for record in other.ctl.history] == [2, 4]
    assert other.ctl.recipe == recipe


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("patterns", "match"),
    [
        ({"0": "2:4", "3": "4:8T"}, "layer '0' is 2:4 in this model and 2:4T in the checkpoint"),
        ({"0": "2:4T"}, "layer '3' is dense in this model and 4:8T in the checkpoint"),
        (
            {"0": "2:4T", "3": "4:8T", "4": "2:4"},
            "layer '4' is 2:4 in this model and dense in the checkpoint",
        ),
    ],
)
def test_other_layers_or_patterns_are_refused(
    patterns: dict[str, str], match: str, strict: bool
) -> None:
    _, state = saved_run()
    other = Script(SRSTE(0.3), Every(2), "sgd", patterns=patterns)
    assert_refused(other, state, match, strict=strict)


KEYS = [
    "version",
    "step",
    "recipe",
    "refresh",
    "solver",
    "patterns",
    "history",
    "gradients",
    "stepped",
    "added",
]


def test_the_keys_are_these() -> None:
    assert sorted(saved_run()[1]) == sorted(KEYS)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("key", KEYS)
def test_a_damaged_state_is_refused(key: str, strict: bool) -> None:
    script, state = saved_run()
    missing = {name: value for name, value in state.items() if name != key}
    says = "has version None" if key == "version" else f"'{key}' is missing"
    assert_refused(script, missing, says, strict=strict)
    for wrong in (object(), 1.5, True, b"x", torch.ones(3)):
        says = "has version" if key == "version" else f"'{key}' is a "
        assert_refused(script, {**state, key: wrong}, says, strict=strict)


def test_damage_inside_is_refused() -> None:
    script, state = saved_run()
    history = state["history"]
    damaged: list[tuple[Any, str]] = [
        (None, "it is a NoneType"),
        ([], "it is a list"),
        ({}, "has version None"),
        ({**state, "version": 99}, "has version 99, and this release reads version 1"),
        ({**state, "step": -1}, "'step' is -1"),
        ({**state, "history": {**history, "kept": None}}, "no column 'kept'"),
        ({**state, "history": {**history, "kept": history["kept"][:1]}}, "differ in length"),
        ({**state, "history": {**history, "step": ["1"]}}, "no column 'step'"),
        ({**state, "stepped": ["8"]}, "'stepped' names '8'"),
        ({**state, "added": [3]}, "'added' names 3"),
        ({**state, "gradients": {"9.weight": torch.ones(2)}}, "a gradient of '9.weight'"),
        ({**state, "gradients": {"3.weight": 1.0}}, "the gradient of '3.weight' is a float"),
        ({**state, "gradients": {"3.bias": torch.ones(3)}}, r"'3.bias' of shape \(3,\)"),
        ({**state, "gradients": {"3.bias": torch.ones(16).double()}}, "float64"),
    ]
    for wrong, match in damaged:
        assert_refused(script, wrong, match)
        assert_refused(script, wrong, match, strict=False)
    script.ctl.load_state_dict(state)


def test_a_state_without_gradients_leaves_them() -> None:
    script, _ = saved_run()
    state = script.ctl.state_dict(gradients=False)
    assert state["gradients"] is None
    gradients = {n: p.grad.clone() for n, p in script.model.named_parameters()}
    script.ctl.load_state_dict(state)
    for name, parameter in script.model.named_parameters():
        assert torch.equal(parameter.grad, gradients[name])


def test_a_state_is_a_copy() -> None:
    """Neither training on nor loading it twice changes it."""
    script, _ = saved_run()
    state = script.ctl.state_dict()
    frozen = copy.deepcopy(state)
    script.go_on(STOP, LAST)
    other = Script(SRSTE(0.3), Every(2), "sgd")
    other.ctl.load_state_dict(state)
    other.go_on(STOP, LAST)
    for name, value in state["gradients"].items():
        assert torch.equal(value, frozen["gradients"][name])
    assert state["history"]["kept"] == frozen["history"]["kept"]
    assert state["step"] == frozen["step"] == 4


def test_history_is_small_in_a_checkpoint() -> None:
    script, _ = saved_run()
    script.ctl.history *= 5000
    file = io.BytesIO()
    torch.save(script.ctl.state_dict(gradients=False), file)
    assert file.tell() < 50 * len(script.ctl.history)
