"""How long one direction of a linear layer takes on a GPU, dense and on sparse tensor cores."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from torch.nn import functional as F

from transposable.pattern import Pattern
from transposable.sparse.measure import Part, Timing, compare, pattern_mask
from transposable.sparse.semi.formats import FORMATS
from transposable.sparse.semi.operand import masked
from transposable.sparse.semi.tuner import device_clock
from transposable.sparse.semi.weight import SemiWeight, WeightGradient

SAMPLE: Final = 3e-3
"""Seconds of one sample: queued work of milliseconds, as in training."""


@dataclass(frozen=True, slots=True)
class SemiQuestion:
    """A matmul on a GPU: weight [rows, cols] = [out, in] with a pattern, times so many tokens.

    Attributes:
        backend: the name of the format that would run it.
        weight_gradient: how, see :class:`~transposable.sparse.semi.weight.SemiWeight`.

    Example:
        >>> gpu = torch.device("cuda", 0)
        >>> question = SemiQuestion(
        ...     1024, 4096, Pattern.parse("2:4T"), 13008, torch.bfloat16, gpu, "cusparselt"
        ... )
        >>> question.rounded().key("forward")
        'forward cusparselt 1024x4096 2:4T 12288 tokens bfloat16'
    """

    rows: int
    cols: int
    pattern: Pattern
    tokens: int
    dtype: torch.dtype
    device: torch.device
    backend: str
    bias: bool = False
    weight_gradient: WeightGradient = "dense"

    unit: ClassVar[str] = "tokens"

    @property
    def sides(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.rows, self.cols

    @property
    def weights(self) -> int:
        """Entries of the weight."""
        return self.rows * self.cols

    def rounded(self) -> SemiQuestion:
        """The question with its tokens rounded down to three bits, and to a multiple of 8."""
        drop = max(self.tokens.bit_length() - 3, 0)
        tokens = max(self.tokens >> drop << drop, 8) // 8 * 8
        return self if tokens == self.tokens else replace(self, tokens=tokens)

    def key(self, part: Part) -> str:
        """The name of a measurement in the cache."""
        dtype = str(self.dtype).removeprefix("torch.")
        bias = " bias" if self.bias else ""
        return (
            f"{part} {self.backend} {self.rows}x{self.cols} {self.pattern} {self.tokens} tokens "
            f"{dtype}{bias}"
        )


def measure_semi(question: SemiQuestion, parts: Collection[Part]) -> dict[Part, Timing]:
    """Time parts of a linear layer on its GPU, on random numbers under an exact mask.

    ==================  ==============================  ============================
    part                dense                           sparse
    ==================  ==============================  ============================
    forward             ``F.linear``                    ``nm_linear``
    input_gradient      dy W                            its gradient for x
    weight_gradient     dy^T x                          with the 2:4 estimate of dy^T
    refresh             S * W                           packing W
    refresh_transposed  S * W                           packing W^T
    ==================  ==============================  ============================

    The sparse side is the whole operator, and its algorithm is tuned first. Both sides are queued
    as in training: many calls, and one wait.

    Args:
        question: what is to run.
        parts: what of it.
    """
    with torch.no_grad(), torch.autocast(question.device.type, enabled=False):
        return {part: _measure(question, part) for part in parts}


def _measure(question: SemiQuestion, part: Part) -> Timing:
    device, dtype = question.device, question.dtype
    rows, cols, tokens = question.rows, question.cols, question.tokens
    mask = pattern_mask(rows, cols, question.pattern).to(device)
    weight = _numbers((rows, cols), question, 0)
    kept = masked(weight, mask, dtype)
    format = FORMATS[question.backend]
    compared = functools.partial(
        compare, clock=functools.partial(device_clock, device), sample=SAMPLE
    )
    if part in ("refresh", "refresh_transposed"):
        flipped = part == "refresh_transposed"
        return compared(
            lambda: masked(weight, mask, dtype),
            lambda: format.pack(weight, mask, dtype, transposed=flipped),
        )
    packed = SemiWeight(
        question.pattern, format=format.name, weight_gradient=question.weight_gradient
    )
    ops = torch.ops.transposable
    x, dy = _numbers((tokens, cols), question, 1), _numbers((tokens, rows), question, 2)
    if part == "forward":
        bias = _numbers((rows,), question, 3) if question.bias else None
        return compared(
            lambda: F.linear(x, kept, bias),
            lambda: ops.nm_linear(x, weight, mask, bias, packed.tag, False),
        )
    if part == "input_gradient":
        return compared(
            lambda: dy @ kept, lambda: ops.nm_input_gradient(dy, weight, mask, packed.tag)
        )
    return compared(
        lambda: torch.where(mask, dy.t() @ x, 0.0),
        lambda: ops.nm_weight_gradient(x, dy, mask, packed.tag),
    )


def _numbers(shape: tuple[int, ...], question: SemiQuestion, seed: int) -> torch.Tensor:
    random = torch.Generator(question.device).manual_seed(seed)
    drawn = torch.randn(shape, generator=random, device=question.device)
    return drawn.to(question.dtype)
