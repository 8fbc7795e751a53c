"""What masks keep the most of: magnitudes, squares, or scores of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from transposable.arrays import to_scores
from transposable.errors import ScoresError

Scores = str | Callable[[str, torch.Tensor], Any] | Mapping[str, Any]
"""“l1”, “l2”, a function of (layer name, weight), or arrays by layer name."""


class Scoring:
    """Turns the weight of a layer into scores >= 0.

    Raises:
        ScoresError: if there are no such scores.
    """

    def __init__(self, scores: Scores) -> None:
        if not (scores in ("l1", "l2") if isinstance(scores, str) else _is_own(scores)):
            raise ScoresError(
                f"retention: received scores={scores!r}; they are 'l1' (|w|), 'l2' (w^2), a "
                "function of (layer name, weight), or a mapping from layer names to arrays"
            )
        self._scores = scores
        self.name = scores if isinstance(scores, str) else "own"

    def of(self, name: str, weight: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The scores of a layer and the unit they are in: sums of them times it are true sums.

        Raises:
            ScoresError: if own scores are missing, of another shape, negative or NaN.
        """
        if self._scores == "l1":
            return weight.abs(), 1.0
        if self._scores == "l2":
            return _squares(weight)
        return self._own(name, weight), 1.0

    def _own(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        where = f"retention (scores of layer {name!r})"
        if isinstance(self._scores, Mapping):
            # A file names tensors, a module layers: both are understood.
            keys = [key for key in (name, name.removesuffix(".weight")) if key in self._scores]
            if not keys:
                raise ScoresError(
                    f"{where}: there are none under this name; received "
                    f"{', '.join(map(repr, list(self._scores)[:3])) or 'an empty mapping'}; give "
                    "one array for each layer, or choose the layers"
                )
            given = self._scores[keys[0]]
        else:
            assert callable(self._scores)
            given = self._scores(name, weight)
        found = to_scores(given, where)
        if found.shape != weight.shape:
            raise ScoresError(
                f"{where}: received shape {tuple(found.shape)} for a weight of shape "
                f"{tuple(weight.shape)}; they must be equal; give one score per weight"
            )
        least = float(found.min())
        if not least >= 0:  # NaN is not either
            raise ScoresError(
                f"{where}: received {least}; shares of a sum make sense for scores >= 0 only; use "
                "their magnitudes, and torch.nan_to_num for NaN"
            )
        return found


def _squares(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
    """w^2 without overflow and underflow of the largest: (w / c)^2 and c^2, c the largest |w|."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    largest = float(wide.abs().max())
    if not 0 < largest < float("inf"):
        return wide.square(), 1.0
    return (wide / largest).square(), largest * largest


def _is_own(scores: object) -> bool:
    return callable(scores) or isinstance(scores, Mapping)
