"""What a state dict holds for a sparse layer, and whether it fits the layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from transposable.errors import CheckpointError, PatternError
from transposable.mask import Mask
from transposable.pattern import Pattern, Structure

if TYPE_CHECKING:
    from transposable.nn.layer import SparseLayer

Weighting = Literal["masked", "soft", "dense"]
"""masked: S * W.  soft: S-STE's shrunk weights.  dense: W itself, the mask rests."""

# The order is part of the file format: append, never change.
STRUCTURES: Final[tuple[Structure, ...]] = ("row", "transposable", "sequential", "unstructured")
WEIGHTINGS: Final[tuple[Weighting, ...]] = ("masked", "soft", "dense")


def encode(pattern: Pattern, weighting: Weighting) -> torch.Tensor:
    """A pattern and a weighting as int64 [n, m, structure, weighting].

    Example:
        >>> encode(Pattern.parse("4:8T"), "masked").tolist()
        [4, 8, 1, 0]
    """
    code = [pattern.n, pattern.m, STRUCTURES.index(pattern.structure), WEIGHTINGS.index(weighting)]
    return torch.tensor(code, dtype=torch.int64)


def decode(code: torch.Tensor) -> tuple[Pattern, Weighting] | None:
    """The pattern and weighting of a code, or None if it is none.

    Example:
        >>> decode(torch.tensor([2, 4, 0, 2]))
        (Pattern('2:4'), 'dense')
        >>> decode(torch.tensor([4, 2, 0, 2])) is None
        True
    """
    if code.shape != (4,) or code.dtype != torch.int64:
        return None
    n, m, structure, weighting = code.tolist()
    if not (0 <= structure < len(STRUCTURES) and 0 <= weighting < len(WEIGHTINGS)):
        return None
    try:
        return Pattern(n, m, STRUCTURES[structure]), WEIGHTINGS[weighting]
    except PatternError:
        return None


def check_state(layer: SparseLayer, state: Mapping[str, Any], prefix: str) -> None:
    """Check what a state dict holds for a layer: its pattern, and a mask that satisfies it.

    Entries that are missing, or of another shape than the layer's, are left to ``load_state_dict``,
    which reports them as it does for any module.

    Raises:
        CheckpointError: names the layer; nothing has been loaded then.
    """
    where = f"load_state_dict: layer {prefix.rstrip('.') or type(layer).__name__!r}"
    code, mask = state.get(f"{prefix}sparsity"), state.get(f"{prefix}mask")
    if isinstance(code, torch.Tensor) and not code.is_meta:
        held = decode(code)
        if held is None:
            raise CheckpointError(
                f"{where} holds the code {code.tolist()}, which names no pattern; the rule is "
                "[n, m, structure, weighting]; the checkpoint is damaged, or of a newer release: "
                "save it again from the sparse model"
            )
        if held[0] != layer.pattern:
            raise CheckpointError(
                f"{where} has pattern {layer.pattern}, and the checkpoint holds {held[0]}; "
                "sparsify the model with the pattern of the checkpoint before loading it"
            )
    if isinstance(mask, torch.Tensor) and mask.shape == layer.mask.shape and not mask.is_meta:
        if mask.dtype != torch.bool:
            raise CheckpointError(
                f"{where} has a mask of dtype {mask.dtype} in the checkpoint, and masks are "
                "torch.bool; something converted the buffers, such as an average over them: save "
                "the state dict of the model itself"
            )
        stored = mask.t() if layer.stored_in_out else mask
        violations = Mask(stored.cpu(), layer.pattern, layout=layer.layout).violations()
        if violations:
            raise CheckpointError(
                f"{where} has a mask in the checkpoint that breaks {layer.pattern} in {violations} "
                "groups; averaging the buffers of models mixes their masks: call "
                "refresh_masks(model) before saving an average"
            )
