"""Training under a mask: the controller, its recipes and its refresh schedules."""

from __future__ import annotations

from transposable.train.controller import MaskController
from transposable.train.history import Refresh
from transposable.train.recipes import (
    RECIPES,
    SRSTE,
    SSTE,
    STE,
    DenseStart,
    DenseTail,
    MaskedDecay,
    Recipe,
    Static,
)
from transposable.train.schedules import Every, Growing, Never, Schedule, Until

__all__ = [
    "RECIPES",
    "SRSTE",
    "SSTE",
    "STE",
    "DenseStart",
    "DenseTail",
    "Every",
    "Growing",
    "MaskController",
    "MaskedDecay",
    "Never",
    "Recipe",
    "Refresh",
    "Schedule",
    "Static",
    "Until",
]
