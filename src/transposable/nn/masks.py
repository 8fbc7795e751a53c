"""The best mask for the weight of a layer, wherever that weight lies, and its storing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from transposable import _core
from transposable.api import kept_matrices
from transposable.errors import DeviceError, ScoresError
from transposable.layout import Layout
from transposable.nn.select import selected
from transposable.pattern import Pattern
from transposable.solvers import Solver


def best_mask(
    weight: torch.Tensor,
    pattern: Pattern,
    layout: Layout,
    stored_in_out: bool,
    solver: str | Solver,
    name: str,
) -> torch.Tensor:
    """The mask of a layer's weight by magnitude, bool, on the weight's device.

    Its shape and its memory order are the weight's: passes over both then run straight through.

    A weight on an accelerator is copied to the CPU, where the solvers run, and the mask back.

    Raises:
        ScoresError: if the weight has a NaN; the message names the layer.
        DeviceError: if the weight is on the meta device.
    """
    if weight.is_meta:
        raise DeviceError(
            f"mask of layer {name!r}: the weight is on the meta device and has no values; "
            "materialise and initialise the model first (model.to_empty(...), then its weights)"
        )
    scores = weight.detach().cpu()
    out_in = scores.t() if stored_in_out else scores
    try:
        kept = kept_matrices(out_in, pattern, solver, layout)
    except ScoresError as error:
        raise ScoresError(f"mask of layer {name!r}: {error}") from None
    mask = layout.arrange(kept, out_in.shape)
    if stored_in_out:
        mask = mask.t()
    if mask.stride() != scores.stride():
        mask = torch.empty_like(scores, dtype=torch.bool).copy_(mask)
    return mask.to(weight.device)


@dataclass(frozen=True, slots=True)
class MaskChange:
    """What a new mask changed.

    ``flips`` is the number of entries that differ from the old mask, ``kept`` the magnitude of the
    weight that the new one keeps, ``total`` all its magnitude.
    """

    flips: int
    kept: float
    total: float


def replace_mask(mask: torch.Tensor, found: torch.Tensor, weight: torch.Tensor) -> MaskChange:
    """Store a new mask in place of the old one, and say what that changed.

        flips = #{S_ij != S'_ij},  kept = sum S'_ij |w_ij|,  total = sum |w_ij|

    Args:
        mask: the old mask, bool; becomes equal to ``found``.
        found: the new mask, of the same shape.
        weight: float32/64/16 or bfloat16, of the same shape. Strides are free.

    Complexity: on the CPU one pass over the three, with sums in double precision.
    """
    if weight.is_cpu:
        threads = torch.get_num_threads()
        change = MaskChange(*_core.change_mask(weight.detach(), mask, found, threads))
        # A backward pass that still needs the old mask must notice, as after any torch operation.
        torch.autograd.graph.increment_version(mask)
        return change
    flips = int((mask != found).count_nonzero())
    mask.copy_(found)
    return MaskChange(flips, *magnitudes(weight, found))


def magnitudes(weight: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """The magnitude of a weight that a mask keeps, and all of it."""
    magnitude = weight.detach().abs()
    wide = torch.float32 if weight.is_mps else torch.float64  # that device has no doubles
    kept = selected(magnitude, mask).sum(dtype=wide)
    return float(kept), float(magnitude.sum(dtype=wide))
