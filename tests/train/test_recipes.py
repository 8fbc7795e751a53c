"""Every recipe against its equation, written down a second time in tests/recipe_reference.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import transposable
from recipe_reference import (
    AdamW,
    Masks,
    Sgd,
    Training,
    by_hand,
    loss_of,
    row_mask,
    shrunk,
    tile_mask,
)
from transposable import MaskController, sparsify
from transposable.nn import functional, sparse_layers
from transposable.train import (
    RECIPES,
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
    Refresh,
    Schedule,
    Static,
    Until,
)

STEPS = 7
IN, HIDDEN, OUT = 16, 8, 8


class Net(nn.Module):
    """y = tanh(x A^T) B^T."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.A = nn.Linear(IN, HIDDEN, bias=False, dtype=torch.float64)
        self.B = nn.Linear(HIDDEN, OUT, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.A.weight.copy_(weights["A"])
            self.B.weight.copy_(weights["B"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.B(torch.tanh(self.A(x)))


def start(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "A": torch.randn(HIDDEN, IN, generator=generator, dtype=torch.float64),
        "B": torch.randn(OUT, HIDDEN, generator=generator, dtype=torch.float64),
    }


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(99)
    return [
        (
            torch.randn(6, IN, generator=generator, dtype=torch.float64),
            torch.randn(6, OUT, generator=generator, dtype=torch.float64),
        )
        for _ in range(STEPS)
    ]


def found(pattern: str, solver: str) -> Masks:
    return lambda weight: transposable.find_mask(weight, pattern, solver=solver).tensor


@dataclass(frozen=True)
class Row:
    """A recipe and what the reference calls it; large factors, so that a missing term shows."""

    recipe: Recipe
    kind: str
    decay: float = 0.0


RECIPE_ROWS = {
    "static": Row(Static(), "static"),
    "ste": Row(STE(), "ste"),
    "sr-ste": Row(SRSTE(0.3), "decay", 0.3),
    "masked-decay": Row(MaskedDecay(0.05), "decay", 0.05),
    "s-ste": Row(SSTE(), "soft"),
}
# pattern, solver, M, and the masks found without the library where trying all is possible
MASK_ROWS: dict[str, tuple[str, str, int, Masks]] = {
    "2:4": ("2:4", "auto", 4, lambda weight: row_mask(weight, 2, 4)),
    "1:4": ("1:4", "row_wise", 4, lambda weight: row_mask(weight, 1, 4)),
    "2:4T": ("2:4T", "exact", 4, lambda weight: tile_mask(weight, 2, 4)),
    "1:2T": ("1:2T", "auto", 2, lambda weight: tile_mask(weight, 1, 2)),
    "4:8T": ("4:8T", "auto", 8, found("4:8T", "reference")),
    "2:4T two_approx": ("2:4T", "two_approx", 4, found("2:4T", "two_approx")),
    "4:8T greedy": ("4:8T", "greedy", 8, found("4:8T", "greedy")),
}
SCHEDULE_ROWS: dict[str, tuple[int | Schedule, set[int]]] = {
    "each": (1, set(range(1, STEPS + 1))),
    "every 3": (Every(3), {3, 6}),
    "until": (Until(4, 2), {2, 4}),
    "growing": (Growing(1, factor=2.0), {1, 3, 7}),
    "never": (Never(), set()),
}
OPTIMIZER_ROWS: dict[str, tuple[Callable, Callable]] = {
    "sgd": (
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
        lambda: Sgd(0.05, 0.9, 0.01, nesterov=True),
    ),
    "adamw": (
        lambda p: torch.optim.AdamW(p, 0.02, betas=(0.9, 0.95), weight_decay=0.1),
        lambda: AdamW(0.02, (0.9, 0.95), 0.1),
    ),
}


class Run:
    """The net, its optimizer and its controller, in the order in which a script makes them."""

    def __init__(
        self,
        recipe: str | Recipe,
        pattern: str,
        solver: str = "auto",
        refresh: int | Schedule | None = None,
        optimizer: Callable = lambda p: torch.optim.SGD(p, 0.3),
    ) -> None:
        self.model = Net(start())
        self.opt = optimizer(self.model.parameters())
        sparsify(self.model, pattern, solver=solver)
        self.ctl = MaskController(self.model, recipe=recipe, refresh=refresh, solver=solver)

    def step(
        self, x: torch.Tensor, target: torch.Tensor, clip: float | None = None
    ) -> Refresh | None:
        (self.model(x) - target).square().sum(1).mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.opt.step()
        record = self.ctl.step()
        self.opt.zero_grad()
        return record


def compare(
    recipe: Recipe,
    pattern: str,
    solver: str,
    refresh: int | Schedule,
    optimizer: Callable,
    reference: Training,
) -> MaskController:
    """Train with the library and with the reference: the same weights and masks at every step."""
    run = Run(recipe, pattern, solver, refresh, optimizer)
    for step, (x, target) in enumerate(batches(), start=1):
        run.step(x, target, reference.clip)
        reference.step(x, target)
        for name, layer in sparse_layers(run.model).items():
            where = f"weight {name} after step {step}"
            torch.testing.assert_close(
                layer.weight.detach(), reference.weights[name], rtol=1e-9, atol=1e-12, msg=where
            )
            if run.ctl.sparse:
                assert torch.equal(layer.mask, reference.mask[name]), where
    return run.ctl


@pytest.mark.parametrize("schedule", SCHEDULE_ROWS)
@pytest.mark.parametrize("masks", MASK_ROWS)
@pytest.mark.parametrize("recipe", RECIPE_ROWS)
def test_recipe_is_its_equation(recipe: str, masks: str, schedule: str) -> None:
    row = RECIPE_ROWS[recipe]
    pattern, solver, m, mask = MASK_ROWS[masks]
    refresh, steps = SCHEDULE_ROWS[schedule]
    for optimizer, textbook in OPTIMIZER_ROWS.values():
        reference = Training(start(), mask, textbook(), steps, row.kind, row.decay, m)
        ctl = compare(row.recipe, pattern, solver, refresh, optimizer, reference)
        assert [record.step for record in ctl.history] == sorted(steps)


@pytest.mark.parametrize("optimizer", OPTIMIZER_ROWS)
@pytest.mark.parametrize("recipe", RECIPE_ROWS)
def test_term_is_added_after_clipping(recipe: str, optimizer: str) -> None:
    """A clip far below the gradient's norm leaves the decay whole."""
    row = RECIPE_ROWS[recipe]
    mine, textbook = OPTIMIZER_ROWS[optimizer]
    pattern, solver, m, mask = MASK_ROWS["2:4T"]
    reference = Training(start(), mask, textbook(), {2, 4, 6}, row.kind, row.decay, m, clip=1e-3)
    compare(row.recipe, pattern, solver, 2, mine, reference)


@pytest.mark.parametrize("optimizer", OPTIMIZER_ROWS)
@pytest.mark.parametrize("recipe", RECIPE_ROWS)
@pytest.mark.parametrize(
    ("wrap", "sparse"),
    [
        (lambda recipe: DenseTail(recipe, at=4), range(4)),
        (lambda recipe: DenseTail.share(recipe, steps=STEPS, share=2 / 7), range(5)),
        (lambda recipe: DenseStart(recipe, at=3), range(3, 100)),
        (lambda recipe: DenseStart(DenseTail(recipe, at=5), at=2), range(2, 5)),
        (lambda recipe: DenseTail(DenseStart(recipe, at=2), at=5), range(2, 5)),
    ],
    ids=["tail", "share", "start", "start and tail", "tail and start"],
)
def test_dense_before_and_after(
    wrap: Callable[[Recipe], Recipe], sparse: range, recipe: str, optimizer: str
) -> None:
    row = RECIPE_ROWS[recipe]
    mine, textbook = OPTIMIZER_ROWS[optimizer]
    pattern, solver, m, mask = MASK_ROWS["2:4T"]
    due = {2, 4, 6}
    reference = Training(
        start(), mask, textbook(), due, row.kind, row.decay, m, sparse_steps=sparse
    )
    ctl = compare(wrap(row.recipe), pattern, solver, 2, mine, reference)
    woken = {sparse.start} if sparse.start else set()
    assert [record.step for record in ctl.history] == sorted((due & set(sparse)) | woken)


@pytest.mark.parametrize("masks", ["2:4", "2:4T", "2:4T two_approx", "4:8T greedy"])
def test_history_is_what_happened(masks: str) -> None:
    """Flip rate: the share of the entries of all masks that changed (FST)."""
    pattern, solver, _, _ = MASK_ROWS[masks]
    run = Run("ste", pattern, solver, refresh=2)
    ctl, layers = run.ctl, list(sparse_layers(run.model).values())
    for x, target in batches():
        before = torch.cat([layer.mask.flatten() for layer in layers])
        record = run.step(x, target)
        after = torch.cat([layer.mask.flatten() for layer in layers])
        assert (record is None) == bool(ctl.steps % 2)
        if record is None:
            assert torch.equal(before, after)
            continue
        weights = torch.cat([layer.weight.detach().abs().flatten() for layer in layers])
        best = torch.cat(
            [transposable.find_mask(x.weight.detach(), pattern).tensor.flatten() for x in layers]
        )
        kept, most = (weights * after).sum(), (weights * best).sum()
        assert record.flip_rate == pytest.approx((before != after).double().mean().item())
        assert record.kept == pytest.approx((kept / weights.sum()).item())
        assert record.gap == pytest.approx((1 - kept / most).item(), abs=1e-12)
        assert record.step == ctl.steps
        assert record.seconds > 0
    assert len(ctl.history) == STEPS // 2
    assert any(record.flip_rate > 0 for record in ctl.history)


def test_reference_gradient_is_autograd() -> None:
    """The formula that everything above is held against."""
    weights, (x, target) = start(), batches()[0]
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    loss_of(leaves["A"], leaves["B"], x, target).backward()
    for name, gradient in by_hand(weights["A"], weights["B"], x, target).items():
        torch.testing.assert_close(gradient, leaves[name].grad, rtol=1e-12, atol=1e-12)


def test_every_recipe_has_a_row() -> None:
    assert set(RECIPES) == set(RECIPE_ROWS)


@pytest.mark.parametrize("recipe", [row.recipe for row in RECIPE_ROWS.values()], ids=RECIPE_ROWS)
def test_names_make_the_recipe(recipe: Recipe) -> None:
    assert type(Run(type(recipe).name, "2:4T").ctl.recipe) is type(recipe)


floats = st.floats(-4, 4, allow_nan=False, width=32)
groups = st.sampled_from([(1, 2), (1, 4), (2, 4), (4, 8), (3, 5)])


@given(st.data(), groups, st.integers(1, 3), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_soft_threshold_is_the_published_one(
    data: st.DataObject, group: tuple[int, int], rows: int, cols: int
) -> None:
    n, m = group
    values = data.draw(st.lists(floats, min_size=rows * cols, max_size=rows * cols))
    weight = torch.tensor(values, dtype=torch.float64).reshape(rows, cols)
    mask = row_mask(weight, n, m)
    soft = functional.soft_thresholded(weight, mask, m)
    torch.testing.assert_close(soft, shrunk(weight, mask, m), rtol=0, atol=0)
    full = cols // m * m
    for start_ in range(0, full, m):
        # The publication's threshold: of m magnitudes the (m - n)-th smallest.
        part = weight[:, start_ : start_ + m]
        t = part.abs().sort(1).values[:, m - n - 1 : m - n]
        expected = part.sign() * (part.abs() - t).clamp(min=0)
        torch.testing.assert_close(soft[:, start_ : start_ + m], expected, rtol=0, atol=0)


@given(st.data(), groups)
@settings(deadline=None, max_examples=60)
def test_soft_threshold_is_continuous(data: st.DataObject, group: tuple[int, int]) -> None:
    """A small step of the weights is a small step of the masked weights, whatever the mask does.

    |w_i| moves by at most d and the threshold, an order statistic, too: at most 2 d together. A
    hard mask jumps by the size of a weight.
    """
    n, m = group
    size = 2 * 3 * m
    weight = torch.tensor(data.draw(st.lists(floats, min_size=size, max_size=size))).double()
    shift = torch.tensor(data.draw(st.lists(floats, min_size=size, max_size=size))).double() * 1e-3
    weight, shift = weight.reshape(2, -1), shift.reshape(2, -1)
    before, after = (
        functional.soft_thresholded(w, row_mask(w, n, m), m) for w in (weight, weight + shift)
    )
    assert (after - before).abs().max() <= 2 * shift.abs().max() + 1e-12


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_soft_scale_is_the_least_squares_one(data: st.DataObject) -> None:
    values = data.draw(st.lists(floats, min_size=16, max_size=16))
    weight = torch.tensor(values, dtype=torch.float64).reshape(2, 8)
    mask = row_mask(weight, 2, 4)
    soft = shrunk(weight, mask, 4)
    scale = functional.soft_scale(weight, mask, 4).double()
    if not soft.any():
        assert scale == 1
        return

    def distance(b: torch.Tensor) -> float:
        return (weight - b * soft).square().sum().item()

    # The scale is stored in float32.
    assert all(distance(scale) <= distance(scale * f) for f in (0.999, 1.001))


def test_soft_scale_stays_when_the_weights_move() -> None:
    run = Run("s-ste", "2:4")
    before = {name: layer.scale.clone() for name, layer in sparse_layers(run.model).items()}
    for x, target in batches():
        run.step(x, target)
    for name, layer in sparse_layers(run.model).items():
        assert torch.equal(layer.scale, before[name])
        assert layer.scale != functional.soft_scale(layer.weight, layer.mask, 4)
