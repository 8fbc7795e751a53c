"""The best mask for the weight of a layer, wherever that weight lies, and what it changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from transposable import _core
from transposable.api import kept_matrices
from transposable.arrays import ANYWHERE
from transposable.errors import DeviceError, TransposableError
from transposable.layout import Layout
from transposable.nn import bits
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

    A weight on a GPU is solved there (docs/gpu.md), one on another accelerator on the CPU.

    Raises:
        ScoresError, SolverError, ...: see :func:`transposable.find_mask`; the message names the
            layer.
        DeviceError: if the weight is on the meta device.
    """
    return _best_mask(weight, pattern, layout, stored_in_out, solver, name, wait=True)[0]


def best_mask_unseen(
    weight: torch.Tensor,
    pattern: Pattern,
    layout: Layout,
    stored_in_out: bool,
    solver: str | Solver,
    name: str,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As :func:`best_mask`, without waiting for a GPU.

    Returns:
        The mask, and on a GPU the number of its tiles with a NaN, int32 []: if that is not 0, the
        weight has no mask, and :func:`best_mask` says why.
    """
    return _best_mask(weight, pattern, layout, stored_in_out, solver, name, wait=False)


def _best_mask(
    weight: torch.Tensor,
    pattern: Pattern,
    layout: Layout,
    stored_in_out: bool,
    solver: str | Solver,
    name: str,
    *,
    wait: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if weight.is_meta:
        raise DeviceError(
            f"mask of layer {name!r}: the weight is on the meta device and has no values; "
            "materialise and initialise the model first (model.to_empty(...), then its weights)"
        )
    scores = weight.detach()
    if scores.device.type not in ANYWHERE:
        scores = scores.cpu()
    out_in = scores.t() if stored_in_out else scores
    try:
        kept, nans = kept_matrices(out_in, pattern, solver, layout, wait=wait)
    except TransposableError as error:
        raise type(error)(f"mask of layer {name!r}: {error}") from None
    mask = layout.arrange(kept, out_in.shape)
    if stored_in_out:
        mask = mask.t()
    if mask.stride() != scores.stride():
        mask = torch.empty_like(scores, dtype=torch.bool).copy_(mask)
    return mask.to(weight.device), nans


@dataclass(frozen=True, slots=True)
class MaskChange:
    """What a new mask changed.

    ``flips`` is the number of entries that differ from the old mask, ``kept`` the magnitude of the
    weight that the new one keeps, ``total`` all its magnitude.
    """

    flips: int
    kept: float
    total: float


def compare_masks(weight: torch.Tensor, mask: torch.Tensor, found: torch.Tensor) -> MaskChange:
    """What a new mask changes.

        flips = #{S_ij != S'_ij},  kept = sum S'_ij |w_ij|,  total = sum |w_ij|

    Args:
        weight: float32/64/16 or bfloat16, any strides.
        mask: the old mask, bool, of the same shape and any strides.
        found: the new mask, likewise.

    Complexity: on the CPU one pass over the three, with sums in double precision.
    """
    if weight.is_cpu:
        threads = torch.get_num_threads()
        return MaskChange(*_core.compare_masks(weight.detach(), mask, found, threads))
    return compare_by_torch(weight, mask, found)


def compare_by_torch(weight: torch.Tensor, mask: torch.Tensor, found: torch.Tensor) -> MaskChange:
    """As :func:`compare_masks`, on any device."""
    flips, kept, total = changes(weight, mask, found).tolist()
    return MaskChange(int(flips), kept, total)


def changes(weight: torch.Tensor, mask: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """flips, kept and total of :func:`compare_masks`, [3], on the weight's device, no waiting."""
    magnitude = weight.detach().abs()
    wide = torch.float32 if weight.is_mps else torch.float64  # that device has no doubles
    return torch.stack(
        [
            (mask != found).count_nonzero().to(wide),
            bits.kept(magnitude, found).sum(dtype=wide),
            magnitude.sum(dtype=wide),
        ]
    )
