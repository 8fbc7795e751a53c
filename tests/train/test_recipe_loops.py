"""Recipes in the loops that people write: the gradient term is added once per optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recipe_reference import tile_mask
from transposable import ControllerError, MaskController, sparsify
from transposable.train import RECIPES, SRSTE, SSTE, STE, DenseTail, MaskedDecay, Recipe, Static

RECIPE_OBJECTS: list[Recipe] = [
    Static(),
    STE(),
    SRSTE(0.3),
    MaskedDecay(0.05),
    SSTE(),
    DenseTail(SRSTE(0.3), at=3),
]
recipes = pytest.mark.parametrize("recipe", RECIPE_OBJECTS, ids=lambda recipe: recipe.name)


def make(seed: int = 0, width: int = 8) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(width, 8, dtype=torch.float64), nn.Tanh(), nn.Linear(8, 8, dtype=torch.float64)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def data(size: int = 12, steps: int = 5, width: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randn(size, width, generator=generator, dtype=torch.float64) for _ in range(steps)
    ]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.1)


optimizers = pytest.mark.parametrize("optimizer", [sgd, adamw])


def train(
    recipe: Recipe | str,
    one_step: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], None],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    batches: list[torch.Tensor] | None = None,
    prepare: Callable[[nn.Module], None] = lambda model: None,
) -> nn.Module:
    model = make()
    opt = optimizer(model)
    sparsify(model, "2:4T")
    prepare(model)
    ctl = MaskController(model, recipe=recipe, refresh=2)
    for batch in data() if batches is None else batches:
        one_step(model, opt, batch)
        ctl.step()
        opt.zero_grad()
    return model


def plain(model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    model(batch).square().mean().backward()
    opt.step()


def assert_same(model: nn.Module, other: nn.Module, **tolerance: Any) -> None:
    theirs = other.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(
            tensor,
            theirs[name],
            rtol=tolerance.get("rtol", 0),
            atol=tolerance.get("atol", 0),
            msg=lambda text, name=name: f"{name}: {text}",
        )


@given(st.sampled_from(RECIPE_OBJECTS), st.sampled_from([sgd, adamw]), st.data())
@settings(deadline=None, max_examples=25)
def test_accumulation_is_one_large_batch(
    recipe: Recipe, optimizer: Callable, draw: st.DataObject
) -> None:
    """Micro-batches of any sizes: the decay is that of one step, not of one backward pass."""
    cuts = draw.draw(st.lists(st.integers(1, 11), max_size=5, unique=True).map(sorted))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 12], strict=True)]

    def accumulated(model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        for part in batch.split(sizes):
            (model(part).square().mean() * len(part) / len(batch)).backward()
        opt.step()

    assert_same(
        train(recipe, accumulated, optimizer),
        train(recipe, plain, optimizer),
        rtol=1e-9,
        atol=1e-12,
    )


@recipes
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_gradient_scaler_and_a_skipped_step(
    recipe: Recipe, fused: bool, clip: float | None
) -> None:
    """Scaling by a power of two changes no bit; a step with an infinite gradient changes none."""
    batches = data()
    infinite = [*batches[:2], batches[2] * torch.inf, *batches[3:]]

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.1, fused=fused)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)

    def scaled(model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        scaler.scale(model(batch).square().mean()).backward()
        if clip is not None:
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(opt)
        scaler.update()

    def unscaled(model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        if not batch.isfinite().all():
            return
        model(batch).square().mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        opt.step()

    with_scaler = train(recipe, scaled, optimizer, infinite)
    assert scaler.get_scale() == 2.0**9, "the infinite step was not noticed"
    assert_same(with_scaler, train(recipe, unscaled, optimizer, infinite))
    assert all(parameter.isfinite().all() for parameter in with_scaler.parameters())


@recipes
@optimizers
def test_closure(recipe: Recipe, optimizer: Callable) -> None:
    def by_position(model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        opt.step(closure(model, opt, batch))

    def by_name(model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        opt.step(closure=closure(model, opt, batch))

    expected = train(recipe, plain, optimizer)
    assert_same(train(recipe, by_position, optimizer), expected)
    assert_same(train(recipe, by_name, optimizer), expected)


def closure(
    model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor
) -> Callable[[], torch.Tensor]:
    def evaluate() -> torch.Tensor:
        opt.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    return evaluate


def test_lbfgs_sees_the_term_at_every_evaluation() -> None:
    """LBFGS calls its closure several times a step; each evaluation has the decay once."""
    decay = 0.3
    evaluations = 0

    def many(model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        opt.step(closure(model, opt, batch))

    def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)

    mine = train(SRSTE(decay), many, lbfgs)
    twin = make()
    leaves = dict(twin.named_parameters())
    opt = torch.optim.LBFGS(leaves.values(), lr=0.5, max_iter=4)
    weights = [leaves["0.weight"], leaves["2.weight"]]
    masks = [tile_mask(weight.detach(), 2, 4) for weight in weights]
    for step, batch in enumerate(data(), start=1):

        def evaluate(
            batch: torch.Tensor = batch, masks: list[torch.Tensor] = masks
        ) -> torch.Tensor:
            nonlocal evaluations
            evaluations += 1
            kept = [(m * w).detach().requires_grad_() for m, w in zip(masks, weights, strict=True)]
            biases = [leaves[name].detach().requires_grad_() for name in ("0.bias", "2.bias")]
            hidden = torch.tanh(batch @ kept[0].T + biases[0])
            loss = (hidden @ kept[1].T + biases[1]).square().mean()
            loss.backward()
            for weight, leaf, mask in zip(weights, kept, masks, strict=True):
                weight.grad = leaf.grad + decay * (~mask * weight.detach())
            leaves["0.bias"].grad, leaves["2.bias"].grad = biases[0].grad, biases[1].grad
            return loss

        opt.step(evaluate)
        if step % 2 == 0:
            masks = [tile_mask(weight.detach(), 2, 4) for weight in weights]
    assert evaluations > 2 * len(data())
    for name, parameter in mine.named_parameters():
        torch.testing.assert_close(parameter, leaves[name], rtol=1e-8, atol=1e-10)


@recipes
@optimizers
def test_frozen_layer(recipe: Recipe, optimizer: Callable) -> None:
    """A frozen weight keeps its value and its mask; the others train as they would anyway."""
    held: dict[str, torch.Tensor] = {}

    def freeze(model: nn.Module) -> None:
        model[0].weight.requires_grad_(False)
        held["mask"] = model[0].mask.clone()
        kept = held["mask"] if isinstance(recipe, Static) else torch.ones_like(held["mask"])
        held["weight"] = kept * model[0].weight.detach()

    model = train(recipe, plain, optimizer, prepare=freeze)
    assert torch.equal(model[0].weight, held["weight"])
    assert torch.equal(model[0].mask, held["mask"])

    def drop(model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        model(batch).square().mean().backward()
        model[0].weight.grad = None
        opt.step()

    # The same by hand: a weight without a gradient is no business of optimizer or recipe.
    assert_same(model, train(recipe, drop, optimizer))


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_tied_weights_decay_once(decay: float) -> None:
    """Two layers over one Parameter: both gradients, one decay, one mask."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    model = nn.Sequential(
        nn.Linear(8, 8, bias=False, dtype=torch.float64),
        nn.Tanh(),
        nn.Linear(8, 8, bias=False, dtype=torch.float64),
    )
    with torch.no_grad():
        model[0].weight.copy_(weight)
    model[2].weight = model[0].weight
    opt = torch.optim.SGD(model.parameters(), 0.05)
    sparsify(model, "2:4T")
    ctl = MaskController(model, recipe=SRSTE(decay), refresh=2)
    mask = tile_mask(weight, 2, 4)
    for step, batch in enumerate(data(), start=1):
        model(batch).square().mean().backward()
        opt.step()
        ctl.step()
        opt.zero_grad()
        leaf = (mask * weight).requires_grad_()
        (torch.tanh(batch @ leaf.T) @ leaf.T).square().mean().backward()
        assert leaf.grad is not None
        weight = weight - 0.05 * (leaf.grad + decay * (~mask * weight))
        if step % 2 == 0:
            mask = tile_mask(weight, 2, 4)
        torch.testing.assert_close(model[0].weight.detach(), weight, rtol=1e-9, atol=1e-12)
        assert model[2].weight is model[0].weight
        assert torch.equal(model[0].mask, mask)
        assert torch.equal(model[2].mask, mask)


def test_shared_module_decays_once() -> None:
    layer = nn.Linear(8, 8, bias=False, dtype=torch.float64)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    opt = torch.optim.SGD(model.parameters(), 1.0)
    sparsify(model, "2:4T")
    ctl = MaskController(model, recipe=SRSTE(0.25))
    before = layer.weight.detach().clone()
    (model(data()[0]).sum() * 0).backward()
    opt.step()
    ctl.step()
    expected = torch.where(layer.mask, before, 0.75 * before)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("recipe", [SRSTE(0.25), MaskedDecay(0.25)], ids=lambda r: r.name)
def test_layers_of_two_optimizers(recipe: Recipe) -> None:
    """Each optimizer's step brings the term of its own weights."""

    def both(model: nn.Module, opt: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        model(batch).square().mean().backward()
        for part in opt.parts:  # type: ignore[attr-defined]
            part.step()

    def split(model: nn.Module) -> torch.optim.Optimizer:
        opt = sgd(model)
        opt.parts = [sgd(model[0]), sgd(model[2])]  # type: ignore[attr-defined]
        return opt

    assert_same(train(recipe, both, split), train(recipe, plain, sgd))


class Foreign:
    """An optimizer that torch's hooks know nothing of."""

    def __init__(self, model: nn.Module) -> None:
        self.opt = sgd(model)
        self.parameters = list(model.parameters())

    def step(self) -> None:
        update = type(self.opt).step.__wrapped__  # type: ignore[attr-defined]
        update(self.opt)


@pytest.mark.parametrize("recipe", [SRSTE(0.3), MaskedDecay(0.05)], ids=lambda r: r.name)
@pytest.mark.parametrize("foreign", [True, False])
def test_before_step_by_hand(recipe: Recipe, foreign: bool) -> None:
    """Called by hand, the term is added once, with torch's optimizers too."""
    model = make()
    opt = sgd(model)
    theirs = Foreign(model)
    sparsify(model, "2:4T")
    ctl = MaskController(model, recipe=recipe, refresh=2)
    for batch in data():
        model(batch).square().mean().backward()
        ctl.before_step()
        (theirs if foreign else opt).step()
        ctl.step()
        model.zero_grad()
    assert_same(model, train(recipe, plain, sgd), rtol=1e-12, atol=1e-15)


def test_a_foreign_optimizer_without_before_step_is_noticed() -> None:
    model = make()
    theirs = Foreign(model)
    sparsify(model, "2:4T")
    ctl = MaskController(model, recipe="sr-ste")
    for batch in data(steps=2):
        model(batch).square().mean().backward()
        theirs.step()
        if ctl.steps == 0:
            ctl.step()
    with pytest.raises(ControllerError, match=r"before_step"):
        ctl.step()


def test_weights_swapped_for_an_evaluation_before_a_skipped_step() -> None:
    """Averaged weights in and out again, then a step that the scaler skips: nothing is wrong."""
    model = make()
    opt = sgd(model)
    sparsify(model, "2:4T")
    ctl = MaskController(model, recipe="sr-ste")
    plain(model, opt, data()[0])
    ctl.step()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(own)
    assert ctl.step() is None


def test_autocast_keeps_the_term_in_full_precision() -> None:
    """Master weights and their gradients are float32 under autocast; so is the decay."""
    model = nn.Linear(8, 8, bias=False)
    opt = torch.optim.SGD(model.parameters(), 1.0)
    sparsify(model, "2:4T")
    ctl = MaskController(model, recipe=SRSTE(1e-4))
    before = model.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.ones(2, 8))
    assert out.dtype is torch.bfloat16
    (out.float().sum() * 0).backward()
    opt.step()
    ctl.step()
    expected = torch.where(model.mask, before, before - 1e-4 * before)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-6, atol=0)


def test_the_list_above_names_every_recipe() -> None:
    assert set(RECIPES) <= {recipe.name for recipe in RECIPE_OBJECTS}
