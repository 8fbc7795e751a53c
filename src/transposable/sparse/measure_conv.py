"""How long one direction of a convolution takes, dense and sparse, side by side."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from torch.nn import functional as F

from transposable.pattern import Pattern
from transposable.sparse.images import Window
from transposable.sparse.measure import (
    INTEGERS,
    MAX_WORK,
    Part,
    Timing,
    compare,
    numbers,
    pattern_mask,
    undisturbed,
)
from transposable.sparse.packed import PackedWeight, matrix
from transposable.sparse.stream import Blocking, Stream

MOST_PIXELS: Final = 4096
"""Of the output; a batch of more is measured with fewer images."""


@dataclass(frozen=True, slots=True)
class ConvQuestion:
    """A convolution: weight [out, in, *kernel] with a pattern, on a batch of images.

    Example:
        >>> window = Window((3, 3), (1, 1), (1, 1), (1, 1))
        >>> ConvQuestion(
        ...     64, 64, window, Pattern.parse("4:8T"), 8, 56, 56, False, torch.float32, 1
        ... ).key("forward")
        'forward conv 64x64x3x3 1x1 1x1 1x1 4:8T 8 of 56x56 planes float32 1 threads'
    """

    out: int
    into: int
    window: Window
    pattern: Pattern
    batch: int
    height: int
    width: int
    channels_last: bool
    dtype: torch.dtype
    threads: int

    unit: ClassVar[str] = "pixels"

    @property
    def sides(self) -> tuple[int, int]:
        """Output and input channels."""
        return self.out, self.into

    @property
    def weights(self) -> int:
        """Entries of the weight."""
        return self.out * self.into * self.window.taps

    @property
    def tokens(self) -> int:
        """Pixels of the output, of all images."""
        down, across = self.window.output(self.height, self.width)
        return self.batch * max(down, 0) * max(across, 0)

    def key(self, part: Part) -> str:
        """The name of a measurement in the cache."""
        window = self.window
        numbers = (window.kernel, window.stride, window.padding, window.dilation)
        kernel, *rest = (f"{down}x{across}" for down, across in numbers)
        layout = "channels_last" if self.channels_last else "planes"
        return (
            f"{part} conv {self.out}x{self.into}x{kernel} {' '.join(rest)} {self.pattern} "
            f"{self.batch} of {self.height}x{self.width} {layout} "
            f"{str(self.dtype).removeprefix('torch.')} {self.threads} threads"
        )

    def rounded(self) -> ConvQuestion:
        """The question that is measured for this one: a batch of a power of two, rounded down, with
        at most MOST_PIXELS of output if there is more than one image.
        """
        one = max(self.tokens // max(self.batch, 1), 1)
        most = max(min(self.batch, MOST_PIXELS // one), 1)
        return replace(self, batch=1 << (most.bit_length() - 1))

    def sliced(self) -> ConvQuestion:
        """The one of which a call takes no longer than MAX_WORK allows: of lower images."""
        most = MAX_WORK * self.threads
        work = self.weights * self.tokens
        if work <= most:
            return self
        window = self.window
        least = window.dilation[0] * (window.kernel[0] - 1) + window.stride[0]
        batch = max(1, self.batch * most // work)
        height = max(least, self.height * self.batch * most // (work * batch))
        return replace(self, batch=batch, height=min(height, self.height))


def measure_conv(question: ConvQuestion, parts: Collection[Part]) -> dict[Part, Timing]:
    """Time parts of a convolution, on random numbers under an exact mask of the pattern.

    ==================  ========================  ===================================
    part                dense                     sparse
    ==================  ========================  ===================================
    forward             ``F.conv2d``              ``nm_conv2d``
    input_gradient      ``convolution_backward``  its gradient for x
    weight_gradient     ``convolution_backward``  its gradient for W, kept entries
    refresh             S * W                     the values of W into their stream
    refresh_transposed  S * W                     the values of W^T into theirs
    ==================  ========================  ===================================

    As :func:`~transposable.sparse.measure.measure`. Of a large problem fewer images, or lower ones,
    are measured.

    Args:
        question: what is to run, float32 or bfloat16. Its threads are set for all of torch
            meanwhile.
        parts: what of it.
    """
    with undisturbed(question.threads):
        return {part: _measure(question, part) for part in parts}


def _measure(question: ConvQuestion, part: Part) -> Timing:
    measured = question.sliced()
    layout = torch.channels_last if question.channels_last else torch.contiguous_format
    window, dtype = measured.window, measured.dtype
    shape = measured.out, measured.into, *window.kernel
    mask = pattern_mask(measured.out, measured.into * window.taps, measured.pattern)
    by_taps = mask.view(measured.out, *window.kernel, measured.into)
    mask = by_taps.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    weight = numbers(measured.out, measured.into * window.taps).to(dtype).view(shape)
    weight = weight.contiguous(memory_format=layout)
    clock = time.thread_time if question.threads == 1 else time.perf_counter
    compared = functools.partial(compare, clock=clock)
    if part in ("refresh", "refresh_transposed"):
        transposed = part == "refresh_transposed"
        kept = matrix(mask, transposed=transposed)
        stream = Stream.build(kept, Blocking.best(question.pattern, kept.shape[1]), dtype)
        bits = weight.view(INTEGERS[dtype])
        return compared(
            lambda: bits * mask, lambda: stream.fill(matrix(weight, transposed=transposed))
        )
    masked = weight * mask
    x = _images(measured, measured.into, measured.height, measured.width)
    dy = _images(measured, measured.out, *window.output(measured.height, measured.width))
    packed = PackedWeight(question.pattern)
    numbers_of = [list(window.stride), list(window.padding), list(window.dilation)]
    known = packed.tag, *numbers_of
    ops = torch.ops.transposable
    last = question.channels_last

    def dense_gradient(*wanted: bool) -> object:
        return torch.ops.aten.convolution_backward(
            dy, x, masked, None, *numbers_of, False, [0, 0], 1, [*wanted, False]
        )

    if part == "forward":
        timing = compared(
            lambda: F.conv2d(x, masked, None, window.stride, window.padding, window.dilation),
            lambda: ops.nm_conv2d(x, weight, mask, None, packed.tag, False, *numbers_of),
        )
    elif part == "input_gradient":
        size = [measured.height, measured.width]
        timing = compared(
            lambda: dense_gradient(True, False),
            lambda: ops.nm_conv2d_input_gradient(
                dy, weight, mask, packed.tag, size, *numbers_of, last
            ),
        )
    else:
        timing = compared(
            lambda: dense_gradient(False, True),
            lambda: ops.nm_conv2d_weight_gradient(x, dy, mask, *known, last),
        )
    scale = question.tokens / measured.tokens
    return Timing(timing.dense * scale, timing.sparse * scale, timing.ratio, timing.low)


def _images(question: ConvQuestion, channels: int, height: int, width: int) -> torch.Tensor:
    flat = numbers(question.batch * channels, height * width).to(question.dtype)
    layout = torch.channels_last if question.channels_last else torch.contiguous_format
    return flat.view(question.batch, channels, height, width).contiguous(memory_format=layout)
