"""What the plan has to know of a convolution, and the decision for one that trains."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import nn

from transposable.errors import PlanError
from transposable.pattern import Pattern
from transposable.sparse.choice import DENSE, Choice
from transposable.sparse.conv import pair, symmetric_padding
from transposable.sparse.images import DecidesConvolutions, Pair, Window
from transposable.sparse.measure_conv import ConvQuestion
from transposable.sparse.planner import planner

DTYPES = (torch.float32, torch.bfloat16)


def window_of(layer: nn.Conv2d) -> tuple[Window, Pair]:
    """The window of a convolution, and what is padded below and on the right besides.

    Example:
        >>> window_of(nn.Conv2d(4, 4, 2, padding="same", dilation=(1, 2)))[0].padding
        (0, 1)
    """
    kernel, stride, dilation = (
        (pair[0], pair[1]) for pair in (layer.kernel_size, layer.stride, layer.dilation)
    )
    padding, more = symmetric_padding(layer.padding, kernel, dilation)
    return Window(kernel, stride, padding, dilation), more


def checked_images(batch: Any, image: Any) -> tuple[int, int, int]:
    """Batch, height and width, or a PlanError."""
    if batch is None or image is None:
        raise PlanError(
            f"plan: received a convolution with batch={batch!r} and image={image!r}; both are "
            "needed, for example batch=8, image=(56, 56)"
        )
    if not isinstance(image, Sequence) or len(image) != 2:
        raise PlanError(f"plan: received image={image!r}; it is (height, width)")
    height, width = (checked(side, "image", 0, 1 << 31) for side in image)
    return checked(batch, "batch", 0, 1 << 31), height, width


def checked_window(
    layer: nn.Conv2d | None, shape: tuple[int, ...], *numbers: Any
) -> tuple[Window, Pair]:
    """The window of a layer, or of a weight of a shape with stride, padding and dilation.

    What is padded below and on the right besides is given beside it, as by :func:`window_of`.
    """
    if layer is not None:
        for name, number in zip(("stride", "padding", "dilation"), numbers, strict=True):
            if number is not None:
                raise PlanError(
                    f"plan: received {name}={number!r} with a layer, which has its own; leave it "
                    "out, or give the shape of the weight instead of the layer"
                )
        return window_of(layer)
    kernel = shape[2], shape[3]
    stride, padding, dilation = (
        default if number is None else number
        for number, default in zip(numbers, (1, 0, 1), strict=True)
    )
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    pads, more = symmetric_padding(padding, kernel, dilations)
    return Window(kernel, strides, pads, dilations), more


def checked(number: Any, name: str, least: int, most: int) -> int:
    """An integer within bounds, or a PlanError."""
    if type(number) is not int or not least <= number <= most:
        rule = f"an integer of at least {least}" + (f", at most {most}" if most < 1 << 62 else "")
        raise PlanError(f"plan: received {name}={number!r}; it must be {rule}")
    return number


def why_dense_conv(layer: nn.Module) -> str | None:
    """Why a layer with a kernel is dense whatever its size, or None if it need not be.

    Example:
        >>> why_dense_conv(nn.Conv2d(8, 8, 3, groups=2)), why_dense_conv(nn.Conv2d(8, 8, 3))
        ('it has 2 groups: the compressed convolution has one', None)
    """
    if not isinstance(layer, nn.Conv2d):
        kind: Any = getattr(layer, "dense_class", type(layer))
        return f"it is a {kind.__name__}: the compressed matmul is for linear layers and Conv2d"
    if layer.groups != 1:
        return f"it has {layer.groups} groups: the compressed convolution has one"
    if layer.padding_mode != "zeros":
        return f"its padding is {layer.padding_mode!r}: the compressed convolution pads with zeros"
    return None


class PlannedConv(DecidesConvolutions):
    """The decision of the plan for one convolution that trains, for its :class:`PackedWeight`.

    As :class:`~transposable.sparse.Planned` for a linear layer.

    Args:
        out, into: channels.
        window: of its kernel.
        pattern: of its mask.

    Attributes:
        stays_dense: as of ``Planned``.

    Example:
        >>> window = Window((1, 1), (1, 1), (0, 0), (1, 1))
        >>> decide = PlannedConv(64, 64, window, Pattern.parse("2:4T"))
        >>> decide.of_images(8, 56, 56, False, torch.float32)
        Choice(forward=False, input_gradient=False, weight_gradient=False)
    """

    __slots__ = ("_known", "into", "out", "pattern", "stays_dense", "window")

    def __init__(self, out: int, into: int, window: Window, pattern: Pattern) -> None:
        self.out, self.into, self.window, self.pattern = out, into, window, pattern
        # Answers of the planner, found without building and hashing a question.
        self._known: dict[tuple[Any, ...], Choice] = {}
        self.stays_dense: set[Hashable] = set()

    def known(
        self, batch: int, height: int, width: int, channels_last: bool, dtype: torch.dtype
    ) -> Choice | None:
        """The answer if it was given before; measures nothing, whatever is going on."""
        return self._known.get(_key(batch, height, width, channels_last, dtype))

    def of_images(
        self, batch: int, height: int, width: int, channels_last: bool, dtype: torch.dtype
    ) -> Choice:
        known = self.known(batch, height, width, channels_last, dtype)
        if known is not None:
            return known
        if dtype not in DTYPES:
            return DENSE
        question = ConvQuestion(
            self.out,
            self.into,
            self.window,
            self.pattern,
            batch,
            height,
            width,
            channels_last,
            dtype,
            torch.get_num_threads(),
        )
        in_backward = torch._C._current_graph_task_id() >= 0
        choice = planner().verdicts(question, training=True, may_measure=not in_backward).choice
        if not in_backward:
            self._known[_key(batch, height, width, channels_last, dtype)] = choice
        return choice

    def __call__(self, tokens: int, dtype: torch.dtype) -> Choice:
        """Dense: a number of pixels says nothing of a convolution."""
        return DENSE

    def __reduce__(self) -> tuple[Any, ...]:
        return PlannedConv, (self.out, self.into, self.window, self.pattern)  # answers anew

    def __repr__(self) -> str:
        return f"PlannedConv({self.out}, {self.into}, {self.window}, {self.pattern!r})"


def _key(
    batch: int, height: int, width: int, channels_last: bool, dtype: torch.dtype
) -> tuple[Any, ...]:
    # All batches of one length in bits have one answer.
    fixed = torch.are_deterministic_algorithms_enabled()
    return batch.bit_length(), height, width, channels_last, dtype, torch.get_num_threads(), fixed
