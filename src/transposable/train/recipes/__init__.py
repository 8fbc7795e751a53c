"""Training recipes: what happens to pruned weights. Each folder has the code and a card."""

from __future__ import annotations

from typing import Final

from transposable.errors import RecipeError
from transposable.train.recipes.base import Recipe
from transposable.train.recipes.dense_tail import DenseStart, DenseTail
from transposable.train.recipes.masked_decay import MaskedDecay
from transposable.train.recipes.s_ste import SSTE
from transposable.train.recipes.sr_ste import SRSTE
from transposable.train.recipes.static import Static
from transposable.train.recipes.ste import STE

__all__ = [
    "RECIPES",
    "SRSTE",
    "SSTE",
    "STE",
    "DenseStart",
    "DenseTail",
    "MaskedDecay",
    "Recipe",
    "Static",
    "make_recipe",
]

RECIPES: Final[dict[str, type[Recipe]]] = {
    kind.name: kind for kind in (Static, STE, SRSTE, MaskedDecay, SSTE)
}
"""The recipes that a name alone describes."""


def make_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe from its name, with default options, or the recipe itself.

    Raises:
        RecipeError: if the name is unknown, or the recipe needs options.

    Example:
        >>> make_recipe("sr-ste")
        SRSTE(decay=0.0002)
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str) and recipe in RECIPES:
        return RECIPES[recipe]()
    for kind in (DenseTail, DenseStart):
        if recipe == kind.name:
            raise RecipeError(
                f"recipe: {recipe!r} needs to know when to switch and what to do before and after; "
                f"give the object, for example {kind.__name__}(MaskedDecay(), at=5000)"
            )
    raise RecipeError(
        f"recipe: received {recipe!r}; the recipes are {', '.join(map(repr, RECIPES))}, or an "
        "object such as SRSTE(decay=1e-4) or DenseTail(MaskedDecay(), at=5000)"
    )
