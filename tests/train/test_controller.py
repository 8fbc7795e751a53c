"""The controller: what it records, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from transposable import (
    ControllerError,
    LayerError,
    MaskController,
    NoEffectWarning,
    Pattern,
    RecipeError,
    ScoresError,
    densify,
    find_mask,
    sparsify,
)
from transposable.nn import sparse_layers
from transposable.train import (
    SRSTE,
    SSTE,
    STE,
    DenseStart,
    DenseTail,
    MaskedDecay,
    Never,
    Recipe,
    Static,
)

RECIPES: list[Recipe] = [
    Static(),
    STE(),
    SRSTE(0.3),
    MaskedDecay(0.05),
    SSTE(),
    DenseTail(Static(), at=2),
    DenseStart(SRSTE(0.3), at=2),
]
recipes = pytest.mark.parametrize("recipe", RECIPES, ids=repr)


def make(seed: int = 0, pattern: str = "2:4T") -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8), nn.Linear(8, 4))
    sparsify(model, pattern, exclude="3")
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def backward(model: nn.Module, seed: int = 0) -> None:
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()


def snapshot(model: nn.Module, ctl: MaskController) -> dict[str, Any]:
    parts = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weightings = [layer.weighting for layer in sparse_layers(model).values()]
    return {**parts, "steps": ctl.steps, "history": list(ctl.history), "weightings": weightings}


def assert_unchanged(before: dict[str, Any], model: nn.Module, ctl: MaskController) -> None:
    now = snapshot(model, ctl)
    assert before.keys() == now.keys()
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(7.0), now[name].nan_to_num(7.0)), name
        else:
            assert value == now[name], name


@pytest.mark.parametrize(
    ("pattern", "solver"),
    [
        ("2:4", "auto"),
        ("2:4T", "exact"),
        ("2:4T", "two_approx"),
        ("4:8T", "auto"),
        ("4:8T", "two_approx"),
        ("4:8T", "greedy"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_history_by_an_independent_count(pattern: str, solver: str, dtype: torch.dtype) -> None:
    model = make(pattern=pattern).to(dtype)
    ctl = MaskController(model, "ste", 2, solver)
    opt = torch.optim.SGD(model.parameters(), 2.0)
    gaps = []
    for step in range(1, 9):
        masks = [layer.mask.clone() for layer in ctl.layers.values()]
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step)).to(dtype)
        model(x).square().mean().backward()
        opt.step()
        record = ctl.step()
        opt.zero_grad()
        if step % 2:
            assert record is None
            continue
        assert record is ctl.history[-1]
        assert record.step == step
        flips = size = kept = total = best = 0.0
        for layer, old in zip(ctl.layers.values(), masks, strict=True):
            magnitude = layer.weight.detach().double().abs()
            flips += int((layer.mask ^ old).sum())
            size += old.numel()
            kept += float((magnitude * layer.mask).sum())
            total += float(magnitude.sum())
            best += float((magnitude * find_mask(layer.weight.detach(), pattern).tensor).sum())
        assert record.flip_rate == flips / size
        assert record.kept == pytest.approx(kept / total, rel=1e-12)
        assert record.gap == pytest.approx(max(0, 1 - kept / best), abs=1e-12)
        assert record.seconds > 0
        gaps.append(record.gap)
    assert any(record.flip_rate > 0 for record in ctl.history)
    assert len(ctl.history) == 4
    if solver == "two_approx":
        assert max(gaps) > 0
    if solver in ("exact", "auto"):
        assert gaps == [0.0] * 4


def test_shared_weights_count_once() -> None:
    """Two layers over one weight are one weight to keep."""
    torch.manual_seed(0)
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    alone = nn.Sequential(copy.deepcopy(first), nn.Linear(16, 8))
    second.weight = first.weight
    tied = nn.Sequential(first, second, copy.deepcopy(alone[1]))
    records = []
    for model in (alone, tied):
        sparsify(model, "2:4T")
        ctl = MaskController(model, "ste")
        with torch.no_grad():
            model[0].weight.add_(torch.arange(256.0).view(16, 16).sin())
        records.append(ctl.refresh())
    assert records[0].flip_rate == records[1].flip_rate > 0
    assert records[0].kept == records[1].kept
    assert torch.equal(tied[0].mask, tied[1].mask)


@pytest.mark.parametrize("where", ["kept", "pruned"])
@recipes
def test_nan_at_a_refresh_changes_nothing(recipe: Recipe, where: str) -> None:
    model = make()
    ctl = MaskController(model, recipe, refresh=1)
    opt = sgd(model)
    backward(model)
    opt.step()  # pruned weights of a static mask are no zeros any more where momentum moves them
    if isinstance(recipe, (DenseStart, DenseTail)):
        ctl.step()
        opt.zero_grad()
        if isinstance(recipe, DenseTail):
            ctl.refresh()
        backward(model)
        opt.step()
    layer = ctl.layers["2"]
    place = (layer.mask if where == "kept" else ~layer.mask).nonzero()[5].tolist()
    saved = layer.weight.data[tuple(place)].item()
    with torch.no_grad():
        layer.weight[~layer.mask] += 0.001  # what static has to zero again, but not before an error
        layer.weight[tuple(place)] = float("nan")
    before = snapshot(model, ctl)
    due = ctl.recipe.sparse_after(ctl.steps + 1)
    zeroed = where == "pruned" and isinstance(recipe, Static)
    for attempt in (ctl.step, ctl.refresh):
        if attempt == ctl.step and (not due or zeroed):
            continue  # a dense tail begins; or the NaN itself is pruned before it can be a score
        with pytest.raises(ScoresError, match=r"layer '2'.*is NaN"):
            attempt()
        assert_unchanged(before, model, ctl)
    with torch.no_grad():
        layer.weight[tuple(place)] = saved
    ctl.step()
    assert ctl.steps == before["steps"] + 1
    assert torch.isfinite(layer.weight).all()


@recipes
def test_a_forgotten_controller_step(recipe: Recipe) -> None:
    model = make()
    ctl = MaskController(model, recipe)
    opt = sgd(model)
    backward(model)
    opt.step()
    backward(model)
    gradients = [p.grad.clone() for p in model.parameters()]
    before = snapshot(model, ctl)
    for _ in range(2):
        with pytest.raises(ControllerError, match="second optimizer step for layer '0'"):
            opt.step()
    assert_unchanged(before, model, ctl)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    ctl.step()
    opt.step()
    ctl.step()
    ctl.close()
    opt.step()
    opt.step()


class Foreign:
    """An optimizer that is none of torch's."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)


def test_an_optimizer_that_is_not_torchs() -> None:
    model = make()
    ctl = MaskController(model, "sr-ste")
    opt = Foreign(model.parameters())
    backward(model)
    opt.step()
    ctl.step()
    opt.step()
    before = snapshot(model, ctl)
    with pytest.raises(ControllerError, match=r"layer '0' changed.*ctl\.before_step\(\)"):
        ctl.step()
    assert_unchanged(before, model, ctl)


def test_an_optimizer_that_is_not_torchs_beside_one_that_is() -> None:
    """The torch optimizer's step says nothing about the layers of the other one."""
    model = make()
    ctl = MaskController(model, "sr-ste")
    torchs = torch.optim.SGD([model[0].weight], 0.1)
    foreign = Foreign([model[2].weight])
    for attempt in range(2):
        backward(model)
        torchs.step()
        foreign.step()
        if attempt:
            with pytest.raises(ControllerError, match="layer '2' changed"):
                ctl.step()
        else:
            ctl.step()


def test_before_step_by_hand_equals_the_hook() -> None:
    models = []
    for by_hand, torchs in ((False, True), (True, True), (True, False)):
        model = make()
        ctl = MaskController(model, SRSTE(0.3), refresh=1)
        opt: Any = (
            torch.optim.SGD(model.parameters(), 0.1) if torchs else Foreign(model.parameters())
        )
        for step in range(4):
            model.zero_grad()
            backward(model, step)
            if by_hand:
                ctl.before_step()
                with pytest.raises(ControllerError, match="has its term"):
                    ctl.before_step()
            opt.step()
            ctl.step()
        models.append(model)
    for other in models[1:]:
        for mine, theirs in zip(models[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_a_step_that_was_added_by_hand_and_not_counted() -> None:
    model = make()
    ctl = MaskController(model, "sr-ste")
    opt = sgd(model)
    backward(model)
    ctl.before_step()
    opt.step()
    opt.zero_grad()
    backward(model)
    with pytest.raises(ControllerError, match="second optimizer step"):
        opt.step()


def test_two_models_and_two_optimizers() -> None:
    """Each controller concerns its own layers, in whatever order they step."""
    alone = []
    for seed in range(2):
        model = make(seed)
        ctl, opt = MaskController(model, SRSTE(0.3), 1), sgd(model)
        for step in range(3):
            backward(model, step)
            opt.step()
            ctl.step()
            opt.zero_grad()
        alone.append(model)
    together = [make(0), make(1)]
    controllers = [MaskController(model, SRSTE(0.3), 1) for model in together]
    optimizers = [sgd(model) for model in together]
    for step in range(3):
        for model in together:
            backward(model, step)
        for opt in optimizers:
            opt.step()
        for ctl, opt in zip(reversed(controllers), reversed(optimizers), strict=True):
            ctl.step()
            opt.zero_grad()
    for one, other in zip(alone, together, strict=True):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])


@given(st.lists(st.sampled_from([0, 1]), min_size=4, max_size=4))
@settings(max_examples=8)
def test_parameters_in_several_optimizers_or_models_in_one(owner: list[int]) -> None:
    """However the parameters are dealt out, each layer has its term once."""

    def run(optimizers: list[torch.optim.Optimizer], models: list[nn.Module]) -> None:
        controllers = [MaskController(model, SRSTE(0.3), 1) for model in models]
        for step in range(2):
            for model in models:
                backward(model, step)
            for opt in optimizers:
                opt.step()
            for ctl in controllers:
                ctl.step()
            for opt in optimizers:
                opt.zero_grad()

    dealt, one = [make(0), make(1)], [make(0), make(1)]
    everything = [p for model in one for p in model.parameters()]
    run([torch.optim.AdamW(everything, 0.01)], list(one))
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for number, parameter in enumerate(p for model in dealt for p in model.parameters()):
        groups[owner[number % 4]].append(parameter)
    run([torch.optim.AdamW(group, 0.01) for group in groups if group], list(dealt))
    for mine, theirs in zip(one, dealt, strict=True):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name])


def test_the_newest_controller_takes_over() -> None:
    """Two terms in one gradient would be a silent change of the recipe."""
    single, model = make(), make()
    for each in (single, model):
        if each is model:
            old = MaskController(each, SRSTE(0.3))
        ctl, opt = MaskController(each, SRSTE(0.3), 1), sgd(each)
        for step in range(3):
            backward(each, step)
            opt.step()
            ctl.step()
            opt.zero_grad()
    for name, tensor in single.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    for attempt in (old.step, old.refresh, old.before_step):
        with pytest.raises(ControllerError, match="in the hands of another controller"):
            attempt()
    assert old.state_dict()["step"] == 0
    del old
    gc.collect()
    backward(model)
    opt.step()
    ctl.step()


def test_a_closed_controller() -> None:
    model = make()
    ctl = MaskController(model, "sr-ste")
    ctl.close()
    ctl.close()
    for attempt in (ctl.step, ctl.refresh, ctl.before_step):
        with pytest.raises(ControllerError, match="was closed"):
            attempt()
    assert ctl.history == []
    assert ctl.state_dict()["step"] == 0
    MaskController(model, "sr-ste").step()


def test_densify_before_close() -> None:
    model, other = make(), nn.Linear(4, 4)
    ctl, opt = MaskController(model, "ste"), sgd(model)
    backward(model)
    opt.step()
    ctl.step()
    densify(model)
    for attempt in (opt.step, ctl.step, ctl.refresh):
        with pytest.raises(ControllerError, match="layer '0' is no sparse layer any more"):
            attempt()
    other(torch.ones(1, 4)).sum().backward()
    sgd(other).step()  # no concern of this controller
    ctl.close()
    opt.step()


def test_each_optimizer_is_checked_for_its_own_layers() -> None:
    model = make()
    ctl, optimizers = MaskController(model, "sr-ste"), {n: sgd(model[n]) for n in (0, 2, 3)}
    backward(model)
    densify(model)
    for number in (0, 2):
        before = model[number].weight.clone()
        with pytest.raises(ControllerError, match=f"step.: layer '{number}' is no sparse layer"):
            optimizers[number].step()
        assert torch.equal(model[number].weight, before)
    optimizers[3].step()  # was never sparse
    ctl.close()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@recipes
def test_a_copy_trains_its_own_copy_of_the_model(
    recipe: Recipe, copied: Callable[[Any], Any]
) -> None:
    """And neither knows of the other. (torch leaves gradients out of copies of a Parameter.)"""
    model = make()
    ctl, opt = MaskController(model, recipe, refresh=2), sgd(model)

    def go_on(model: nn.Module, ctl: MaskController, opt: torch.optim.Optimizer) -> None:
        for step in range(4):
            backward(model, step)
            opt.step()
            ctl.step()
            opt.zero_grad()

    go_on(model, ctl, opt)
    model2, ctl2, opt2 = copied((model, ctl, opt))
    assert ctl2.model is model2
    assert ctl2.layers["0"] is model2[0]
    assert ctl2.layers["0"] is not model[0]
    go_on(model, ctl, opt)
    del model, opt
    state, history = ctl.model.state_dict(), ctl.history
    del ctl
    gc.collect()
    go_on(model2, ctl2, opt2)
    for name, tensor in model2.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert [r.step for r in ctl2.history] == [r.step for r in history]
    backward(model2)
    opt2.step()
    with pytest.raises(ControllerError, match="second optimizer step"):
        opt2.step()


def test_weights_replaced_through_data() -> None:
    model = make()
    ctl, opt = MaskController(model, "static"), sgd(model)
    backward(model)
    opt.step()
    ctl.step()
    fresh = torch.randn(24, 16, generator=torch.Generator().manual_seed(5))
    model[0].weight.data = fresh.clone()
    opt.zero_grad()
    backward(model)
    opt.step()
    ctl.step()
    assert not model[0].weight[~model[0].mask].any()
    ctl.refresh()
    assert model[0].mask.equal(find_mask(model[0].weight.detach(), "2:4T").tensor)
    for ste in ("ste", "sr-ste"):
        ctl, model[0].weight.data = MaskController(model, ste), fresh.clone()
        ctl.refresh()
        assert model[0].mask.equal(find_mask(fresh, "2:4T").tensor)


def test_names_do_not_depend_on_wrappers() -> None:
    bare = make()
    expected = MaskController(bare, "ste").state_dict()
    wrapped = make()
    wrapped[2] = checkpoint_wrapper(torch.compile(wrapped[2], backend="eager"))
    for model in (torch.compile(make(), backend="eager"), wrapped):
        ctl = MaskController(model, "ste")
        state = ctl.state_dict()
        assert list(ctl.layers) == ["0", "2"]
        assert state["patterns"] == expected["patterns"] == {"0": "2:4T", "2": "2:4T"}
        ctl.load_state_dict(expected)


def test_a_warm_up_that_starts_at_zero() -> None:
    """A step with learning rate 0 and gradients is one; one with neither is none of training."""
    model = make()
    ctl, opt = MaskController(model, SRSTE(0.3)), torch.optim.AdamW(model.parameters(), 0.0)
    backward(model)
    gradient = model[0].weight.grad.clone()
    opt.step()
    assert not torch.equal(gradient, model[0].weight.grad)
    with pytest.raises(ControllerError, match="second optimizer step"):
        opt.step()
    ctl.step()
    for parameter in model.parameters():
        parameter.grad.zero_()
    for _ in range(3):
        opt.step()
        assert not any(parameter.grad.any() for parameter in model.parameters())
    backward(model)
    opt.param_groups[0]["lr"] = 0.1
    opt.step()
    ctl.step()
    assert ctl.steps == 2


def test_bad_input() -> None:
    with pytest.raises(LayerError, match=r"Linear has no sparse layer; call sparsify"):
        MaskController(nn.Linear(4, 4))
    model = make()
    before = copy.deepcopy(model.state_dict())
    for wrong in (
        {"recipe": "SR-STE"},
        {"recipe": None},
        {"recipe": "dense-tail"},
        {"refresh": 0},
        {"refresh": 1.5},
        {"refresh": "often"},
    ):
        with pytest.raises(RecipeError, match=r"received|needs to know"):
            MaskController(model, **wrong)
    with pytest.raises(Exception, match="solver"):
        MaskController(model, solver="best")
    unstructured = nn.Sequential(nn.Linear(16, 16))
    sparsify(unstructured, Pattern.parse("50%"))
    with pytest.raises(RecipeError, match="layer '0' has pattern 50%"):
        MaskController(unstructured, "s-ste")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not model[0].straight_through
    densify(model)
    with pytest.warns(NoEffectWarning):
        densify(model)


def test_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make()
        ctl, opt = MaskController(model, "static", Never()), sgd(model)
        backward(model)
        opt.step()
        assert ctl.step() is None
        opt.step()
        ctl.step()
        assert ctl.steps == 2
