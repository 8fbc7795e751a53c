"""The best mask for the weight of a layer, wherever that weight lies."""

from __future__ import annotations

import torch

from transposable.api import find_mask
from transposable.errors import DeviceError, TransposableError
from transposable.layout import Layout
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
    """The mask of a layer's weight by magnitude, bool in the weight's shape, on its device.

    A weight on an accelerator is copied to the CPU, where the solvers run, and the mask back.

    Raises:
        ScoresError, SolverError, ...: see :func:`transposable.find_mask`; the message names the
            layer.
        DeviceError: if the weight is on the meta device.
    """
    if weight.is_meta:
        raise DeviceError(
            f"mask of layer {name!r}: the weight is on the meta device and has no values; "
            "materialise and initialise the model first (model.to_empty(...), then its weights)"
        )
    scores = weight.detach().cpu()
    if stored_in_out:
        scores = scores.t()
    try:
        mask = find_mask(scores, pattern, solver=solver, layout=layout).tensor
    except TransposableError as error:
        raise type(error)(f"mask of layer {name!r}: {error}") from None
    if stored_in_out:
        mask = mask.t().contiguous()
    return mask.to(weight.device)
