"""What the plan has to know of a GPU, and the decision for a linear layer that trains on one."""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from torch import nn

from transposable.pattern import Pattern
from transposable.sparse.cache import PlanCache
from transposable.sparse.choice import DENSE, Choice, DecidesByDevice
from transposable.sparse.planner import Planner
from transposable.sparse.semi import probe
from transposable.sparse.semi.formats import Format, format_on
from transposable.sparse.semi.measure import SemiQuestion
from transposable.sparse.semi.operand import hardware_pattern
from transposable.sparse.semi.tuner import Case, tuner_of
from transposable.sparse.semi.weight import WeightGradient

_MOST_ANSWERS: Final = 4096


def why_dense_semi(
    shape: tuple[int, ...],
    pattern: Pattern,
    dtype: torch.dtype,
    device: torch.device,
    format: str | None = None,
) -> str | None:
    """Why a layer is dense-masked on a GPU whatever is measured, or None if it need not be.

    Args:
        shape: [out, in] of the weight.
        pattern: of the mask.
        dtype: of the products: that of the input, or of autocast.
        device: of the layer.
        format: what packs, by name; default the best for the device.

    Example:
        >>> why_dense_semi((64, 64), Pattern.parse("2:4T"), torch.bfloat16, torch.device("meta"))
        'device meta: sparse tensor cores are those of NVIDIA GPUs'
    """
    found = format_on(device, format)
    if not isinstance(found, Format):
        return found
    return why_not_packed(found, shape, pattern, dtype)


def why_not_packed(
    format: Format, shape: tuple[int, ...], pattern: Pattern, dtype: torch.dtype
) -> str | None:
    """Why a format does not pack a weight, or None if it does.

    Example:
        >>> from transposable.sparse.semi import CUSPARSELT
        >>> why_not_packed(CUSPARSELT, (64, 72), Pattern.parse("2:4T"), torch.bfloat16)
        '64 x 72: the sides of a weight must be multiples of 16 for cusparselt'
        >>> why_not_packed(CUSPARSELT, (64, 64), Pattern.parse("4:8T"), torch.bfloat16)[:52]
        '4:8T: sparse tensor cores take two of every four, an'
    """
    if len(shape) != 2:
        return "a convolution: on a GPU only linear layers run on sparse tensor cores"
    if not hardware_pattern(pattern):
        return (
            f"{pattern}: sparse tensor cores take two of every four, and a mask of this pattern "
            "keeps more somewhere; such patterns are accelerated on CPUs"
        )
    if dtype not in format.dtypes:
        name = str(dtype).removeprefix("torch.")
        return (
            f"{name}: sparse tensor cores take bfloat16 and float16; for autocast ask with "
            "dtype=torch.bfloat16"
        )
    if any(side % format.multiple for side in shape) or 0 in shape:
        sides = " x ".join(map(str, shape))
        return (
            f"{sides}: the sides of a weight must be multiples of {format.multiple} for "
            f"{format.name}"
        )
    return None


def why_apart(module: nn.Module) -> str | None:
    """Why the tensors of a layer cannot be multiplied as they lie, or None."""
    weight, mask = getattr(module, "weight", None), getattr(module, "mask", None)
    if not isinstance(weight, torch.Tensor) or not isinstance(mask, torch.Tensor):
        return None
    if weight.device == mask.device:
        return None
    return f"its mask is on {mask.device} and its weight on {weight.device}: move the whole layer"


def semi_question(
    shape: tuple[int, ...],
    pattern: Pattern,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    bias: bool,
    weight_gradient: WeightGradient = "dense",
    format: str | None = None,
) -> SemiQuestion:
    """The question for a layer to which :func:`why_dense_semi` has no objection."""
    device = probe.with_index(device)
    found = format_on(device, format)
    name = found.name if isinstance(found, Format) else found
    out, into = shape
    return SemiQuestion(out, into, pattern, tokens, dtype, device, name, bias, weight_gradient)


def why_unsound_here(question: SemiQuestion) -> str | None:
    """Why the library of a question cannot be trusted on its GPU, which is tried once, or None."""
    found = format_on(question.device, question.backend)
    if not isinstance(found, Format):
        return found
    sides = question.rows, question.cols
    case = Case(found, *sides, 8, question.dtype, question.bias, question.device)
    with torch.no_grad():
        return tuner_of(question.device).why_unsound(case)


def semi_planner(device: torch.device) -> Planner:
    """The planner of a GPU in this process."""
    return _planner(probe.with_index(device))


@functools.cache
def _planner(device: torch.device) -> Planner:
    return Planner(PlanCache(identity=probe.gpu_identity(device)))


class PlannedSemi(DecidesByDevice):
    """The decision of the plan for one linear layer on a GPU, for its ``SemiWeight``.

    An input of a kind that was not met before is measured then; not while gradients are being
    computed, nor while a CUDA graph is captured, when it is dense: warm up first.

    Args:
        rows, cols: out and in of the layer.
        pattern: of its mask.
        bias: whether it has one.
        weight_gradient: how it is computed.
        format: what packs, by name; default the best for the device.

    Example:
        >>> decide = PlannedSemi(64, 64, Pattern.parse("2:4T"))
        >>> decide.on(torch.device("meta"), 4096, torch.bfloat16)
        Choice(forward=False, input_gradient=False, weight_gradient=False)
    """

    __slots__ = ("_known", "bias", "cols", "format", "pattern", "rows", "weight_gradient")

    def __init__(
        self,
        rows: int,
        cols: int,
        pattern: Pattern,
        *,
        bias: bool = False,
        weight_gradient: WeightGradient = "dense",
        format: str | None = None,
    ) -> None:
        self.rows, self.cols, self.pattern = rows, cols, pattern
        self.bias, self.format = bias, format
        self.weight_gradient: WeightGradient = weight_gradient
        self._known: dict[tuple[torch.device, int, torch.dtype, bool], Choice] = {}

    def on(self, device: torch.device, tokens: int, dtype: torch.dtype) -> Choice:
        key = device, tokens, dtype, torch.are_deterministic_algorithms_enabled()
        known = self._known.get(key)
        if known is not None:
            return known
        shape, how = (self.rows, self.cols), self.format
        if why_dense_semi(shape, self.pattern, dtype, device, how) is not None:
            return DENSE
        busy = torch._C._current_graph_task_id() >= 0 or torch.cuda.is_current_stream_capturing()
        question = semi_question(
            shape,
            self.pattern,
            tokens,
            dtype,
            device,
            bias=self.bias,
            weight_gradient=self.weight_gradient,
            format=how,
        )
        if not busy and why_unsound_here(question) is not None:
            choice = DENSE
        else:
            asked = semi_planner(device)
            choice = asked.verdicts(question, training=True, may_measure=not busy).choice
        if not busy:
            if len(self._known) >= _MOST_ANSWERS:
                self._known.clear()
            self._known[key] = choice
        return choice

    def __call__(self, tokens: int, dtype: torch.dtype) -> Choice:
        return self.on(torch.device("cuda"), tokens, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        sides = self.rows, self.cols, self.pattern  # another machine answers anew
        return _restored, (sides, self.bias, self.weight_gradient, self.format)

    def __repr__(self) -> str:
        return f"PlannedSemi(rows={self.rows}, cols={self.cols}, pattern={self.pattern!r})"


def _restored(
    sides: Any, bias: bool, weight_gradient: WeightGradient, format: str | None
) -> PlannedSemi:
    return PlannedSemi(*sides, bias=bias, weight_gradient=weight_gradient, format=format)
