"""The call before every optimizer step: when it comes, for what, and that it goes away."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as tables

from transposable import MaskController, sparsify
from transposable.train import SRSTE, step_hook
from transposable.train.step_hook import StepHook


def hooks() -> int:
    return len(step_hook._HOOKS)


class Listener:
    """Writes down the calls that it gets: parameters (by their number), again, gradient."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.calls: list[tuple[list[int], bool, float | None]] = []
        self.hook = StepHook(self.heard)

    def heard(self, optimizer: torch.optim.Optimizer, ids: set[int], again: bool) -> None:
        numbers = [n for n, p in enumerate(self.parameters) if id(p) in ids]
        assert len(numbers) == len(ids)
        gradient = self.parameters[numbers[0]].grad if numbers else None
        self.calls.append((numbers, again, None if gradient is None else float(gradient)))


def parameters(count: int = 2) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(float(n + 1))) for n in range(count)]


def test_hooks_go_with_their_owner() -> None:
    before = hooks()
    listener: Listener | None = Listener(parameters())
    assert hooks() == before + 1
    alive = weakref.ref(listener)
    gc.disable()
    try:
        del listener
        assert alive() is None  # at once: nothing refers to the owner in a circle
        assert hooks() == before
    finally:
        gc.enable()


def test_hooks_go_with_the_controller() -> None:
    before = hooks()
    for close in (False, True):
        model = nn.Sequential(nn.Linear(8, 8))
        sparsify(model, "2:4T")
        controllers = [MaskController(model, recipe) for recipe in ("sr-ste", "static", "ste")]
        assert hooks() == before + 3
        if close:
            for ctl in controllers:
                ctl.close()
            assert hooks() == before
        del controllers
        ctl = None
        gc.collect()
        assert hooks() == before
        opt = torch.optim.SGD(model.parameters(), 0.1)
        model(torch.ones(1, 8)).sum().backward()
        gradient = model[0].weight.grad.clone()
        opt.step()
        assert torch.equal(gradient, model[0].weight.grad)


def test_replacing_a_controller_leaves_one() -> None:
    before = hooks()
    model = nn.Sequential(nn.Linear(8, 8))
    sparsify(model, "2:4T")
    for _ in range(5):
        ctl = MaskController(model, "sr-ste")
    assert hooks() == before + 1
    ctl.step()


def test_torch_has_one_pair_of_hooks_for_ever() -> None:
    kept = Listener(parameters())
    pairs = len(tables._global_optimizer_pre_hooks), len(tables._global_optimizer_post_hooks)
    for _ in range(3):
        other = Listener(parameters())
        other.hook.remove()
    del other
    now = len(tables._global_optimizer_pre_hooks), len(tables._global_optimizer_post_hooks)
    assert pairs == now
    del kept


@pytest.mark.parametrize("way", ["collected", "removed", "added"])
def test_hooks_come_and_go_inside_a_step(way: str) -> None:
    """Garbage is collected at any moment, torch's walk through its list of hooks included."""
    p = parameters()
    others: list[Listener] = []

    class Meddler(Listener):
        def heard(self, optimizer: torch.optim.Optimizer, ids: set[int], again: bool) -> None:
            super().heard(optimizer, ids, again)
            if way == "added":
                others.append(Listener(p))
            elif way == "removed":
                others[0].hook.remove()
            else:
                others.clear()

    first = Meddler(p)
    if way != "added":
        others.append(Listener(p))
    last = Listener(p)
    opt = torch.optim.SGD(p, 0.1)
    for _ in range(2):
        opt.step()
    assert len(first.calls) == len(last.calls) == 2
    for listener in (first, last, *others):  # the class above, a circle, keeps the others alive
        listener.hook.remove()


def test_once_for_each_step() -> None:
    p = parameters()
    listener = Listener(p)
    opt = torch.optim.SGD(p, 0.1)
    p[0].grad = torch.tensor(3.0)
    opt.step()
    opt.step()
    torch.optim.Adam([p[1]]).step()
    assert listener.calls == [([0, 1], False, 3.0), ([0, 1], False, 3.0), ([1], False, None)]
    listener.hook.remove()
    opt.step()
    assert len(listener.calls) == 3


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_is_called_first(keyword: bool) -> None:
    p = parameters()
    listener = Listener(p)
    opt = torch.optim.SGD(p, 0.1)

    def closure() -> float:
        p[0].grad = torch.tensor(5.0)
        return 42.0

    result = opt.step(closure=closure) if keyword else opt.step(closure)
    assert result == 42.0
    assert listener.calls == [([0, 1], False, 5.0)]
    assert opt.step(closure=None) is None
    assert len(listener.calls) == 2


def test_a_closure_that_is_called_again() -> None:
    p = parameters(1)
    listener = Listener(p)
    opt = torch.optim.LBFGS(p, max_iter=3, lr=0.1)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = (p[0] - 7).square()
        loss.backward()
        return loss

    opt.step(closure)
    assert [again for _, again, _ in listener.calls] == [False, True, True]
    opt.step(closure)
    assert [again for _, again, _ in listener.calls][3:] == [False, True, True]


class Outer(torch.optim.Optimizer):
    """Steps other optimizers inside its own step, as ZeroRedundancyOptimizer does."""

    def __init__(self, params: list[nn.Parameter], inner: list[torch.optim.Optimizer]) -> None:
        super().__init__(params, {})
        self.inner = inner
        self.fail = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if self.fail:
            raise RuntimeError("out of memory")
        return [opt.step(closure) for opt in self.inner]


@pytest.mark.parametrize("with_closure", [False, True])
def test_an_optimizer_inside_another_one(with_closure: bool) -> None:
    """Parameters of the outer one are reported once, those of the inner one alone as well."""
    p = parameters(3)
    listener = Listener(p)
    opt = Outer(p[:2], [torch.optim.SGD([p[0]], 0.1), torch.optim.SGD([p[1], p[2]], 0.1)])
    for _ in range(2):
        listener.calls.clear()
        opt.step((lambda: 1.0) if with_closure else None)
        told = [(ids, again) for ids, again, _ in listener.calls]
        if with_closure:  # the outer one's comes with each call of the closure
            assert told.count(([0, 1], False)) == 1
            assert told.count(([2], False)) == 1
        else:
            assert told == [([0, 1], False), ([], False), ([2], False)]
    listener.calls.clear()
    torch.optim.SGD([p[0]], 0.1).step()
    assert [ids for ids, _, _ in listener.calls] == [[0]]


def test_a_step_that_ends_in_an_exception() -> None:
    p = parameters()
    listener = Listener(p)
    opt = Outer(p, [])
    opt.fail = True
    for _ in range(2):  # the second is no step inside the first
        with pytest.raises(RuntimeError, match="out of memory"):
            opt.step()
    assert [ids for ids, _, _ in listener.calls] == [[0, 1]] * 2
    listener.hook.forget()
    torch.optim.SGD(p, 0.1).step()
    assert [ids for ids, _, _ in listener.calls] == [[0, 1]] * 3


def test_an_owner_that_refuses_stops_the_step() -> None:
    p = parameters(1)
    p[0].grad = torch.tensor(1.0)
    opt = torch.optim.SGD(p, 0.1)

    class Refuser:
        def __init__(self) -> None:
            self.hook = StepHook(self.refuse)

        def refuse(self, *_: Any) -> None:
            raise ValueError("no")

    refuser = Refuser()
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            opt.step()
    assert p[0].item() == 1.0
    del refuser
    opt.step()
    assert p[0].item() != 1.0


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_before_the_term_is_added(fused: bool) -> None:
    """Whether the scaler divides, the user does, or the fused kernel of the optimizer."""
    weights = []
    for scaled, unscale in ((False, False), (True, False), (True, True)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8))
        sparsify(model, "2:4T")
        ctl = MaskController(model, SRSTE(0.5))
        opt = torch.optim.AdamW(model.parameters(), 0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=scaled)
        for step in range(3):
            loss = model(torch.ones(2, 8) * (step + 1)).square().mean()
            if scaled and step == 0:  # the first step overflows and is skipped
                scaler.scale(loss * torch.inf).backward()
                scaler.step(opt)
                scaler.update()
                ctl.step()
                opt.zero_grad()
            scaler.scale(model(torch.ones(2, 8) * (step + 1)).square().mean()).backward()
            if unscale:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
            ctl.step()
            opt.zero_grad()
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
