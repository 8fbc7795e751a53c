"""Recipes do the same to every kind of layer: what is a linear layer in disguise trains as one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from transposable import MaskController, sparsify
from transposable.nn import sparse_layers
from transposable.train import SRSTE, SSTE, STE, DenseStart, DenseTail, MaskedDecay, Recipe, Static

OUT, IN, STEPS = 8, 16, 5
RECIPES: list[Recipe] = [
    Static(),
    STE(),
    SRSTE(0.3),
    MaskedDecay(0.05),
    SSTE(),
    DenseTail(MaskedDecay(0.05), at=3),
    DenseStart(SSTE(), at=2),
]
recipes = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
# S-STE's scale is one number for a whole weight: splitting the weight changes it.
separable = pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in RECIPES if recipe.weighting != "soft"],
    ids=lambda recipe: recipe.name,
)
patterns = pytest.mark.parametrize("pattern", ["2:4", "2:4T", "4:8T"])


def weight_and_bias() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(OUT, IN, generator=generator, dtype=torch.float64),
        torch.randn(OUT, generator=generator, dtype=torch.float64),
    )


def linear() -> nn.Module:
    return nn.Linear(IN, OUT, dtype=torch.float64)


def conv1d() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (IN, 1)), nn.Conv1d(IN, OUT, 1).double(), nn.Flatten())


def conv2d() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (IN, 1, 1)), nn.Conv2d(IN, OUT, 1).double(), nn.Flatten())


def conv1d_of_transformers() -> nn.Module:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(OUT, IN).double()


def put(model: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer = next(module for module in model.modules() if hasattr(module, "weight"))
    transposed = type(layer).__name__ == "Conv1D"
    with torch.no_grad():
        layer.weight.copy_((weight.T if transposed else weight).reshape(layer.weight.shape))
        layer.bias.copy_(bias)


def trained(
    model: nn.Module, recipe: Recipe, pattern: str, x_shape: tuple[int, ...] = (6, IN)
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and mask of each sparse layer after a few steps, [out, in] or as a convolution's."""
    opt = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.1)
    sparsify(model, pattern)
    ctl = MaskController(model, recipe=recipe, refresh=2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(x_shape, generator=generator, dtype=torch.float64)
        torch.tanh(model(x)).square().mean().backward()
        opt.step()
        ctl.step()
        opt.zero_grad()
    return [
        (layer.weight.detach().mT, layer.mask.mT)
        if layer.stored_in_out
        else (layer.weight.detach(), layer.mask)
        for layer in sparse_layers(model).values()
    ]


def assert_same(
    weight: torch.Tensor, mask: torch.Tensor, other: torch.Tensor, other_mask: torch.Tensor
) -> None:
    assert torch.equal(mask, other_mask.reshape(mask.shape))
    torch.testing.assert_close(weight, other.reshape(weight.shape), rtol=1e-9, atol=1e-12)


@recipes
@patterns
@pytest.mark.parametrize("make", [conv1d, conv2d, conv1d_of_transformers])
def test_one_by_one_layers(make: Callable[[], nn.Module], pattern: str, recipe: Recipe) -> None:
    results = []
    for model in (linear(), make()):
        put(model, *weight_and_bias())
        results.append(trained(model, recipe, pattern)[0])
    assert_same(*results[0], *results[1])


class Halves(nn.Module):
    """Two linear layers, each on half of the input: a convolution with two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.ModuleList(
            nn.Linear(IN // 2, OUT // 2, dtype=torch.float64) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([f(part) for f, part in zip(self.halves, x.chunk(2, 1), strict=True)], 1)


@separable
@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
def test_groups_are_layers_of_their_own(pattern: str, recipe: Recipe) -> None:
    weight, bias = weight_and_bias()
    grouped = nn.Sequential(
        nn.Unflatten(1, (IN, 1)), nn.Conv1d(IN, OUT, 1, groups=2).double(), nn.Flatten()
    )
    put(grouped, weight[:, : IN // 2], bias)
    split = Halves()
    for i, half in enumerate(split.halves):
        rows = slice(i * OUT // 2, (i + 1) * OUT // 2)
        put(half, weight[rows, : IN // 2], bias[rows])
    together, mask = trained(grouped, recipe, pattern)[0]
    parts = trained(split, recipe, pattern)
    assert_same(together, mask, torch.cat([w for w, _ in parts]), torch.cat([m for _, m in parts]))


class Positions(nn.Module):
    """A convolution over three positions, as the sum of three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.ModuleList(
            nn.Linear(IN, OUT, bias=False, dtype=torch.float64) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(f(x[:, :, i]) for i, f in enumerate(self.at))  # type: ignore[return-value]


@separable
@patterns
def test_kernel_positions_are_matrices_of_their_own(pattern: str, recipe: Recipe) -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(3, OUT, IN, generator=generator, dtype=torch.float64)
    conv = nn.Sequential(nn.Conv1d(IN, OUT, 3, bias=False).double(), nn.Flatten())
    split = Positions()
    with torch.no_grad():
        conv[0].weight.copy_(weights.permute(1, 2, 0))
        for layer, weight in zip(split.at, weights, strict=True):
            layer.weight.copy_(weight)
    together, mask = trained(conv, recipe, pattern, (6, IN, 3))[0]
    for i, (weight, own) in enumerate(trained(split, recipe, pattern, (6, IN, 3))):
        assert_same(weight, own, together[..., i], mask[..., i])
