"""plan: what runs a layer, and why, for people and for programs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transposable.errors import PlanError
from transposable.pattern import Pattern
from transposable.sparse.ask_conv import (
    DTYPES,
    PlannedConv,
    checked,
    checked_images,
    checked_window,
    why_dense_conv,
    window_of,
)
from transposable.sparse.ask_semi import (
    semi_planner,
    semi_question,
    why_apart,
    why_dense_semi,
    why_unsound_here,
)
from transposable.sparse.choice import DENSE, Choice
from transposable.sparse.conv import Padding
from transposable.sparse.images import Pair, is_channels_last
from transposable.sparse.measure import DIRECTIONS, Question
from transposable.sparse.measure_conv import ConvQuestion
from transposable.sparse.planner import (
    AnyQuestion,
    Verdict,
    Verdicts,
    planner,
    why_too_small,
)

MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs each direction of a layer; its text is a table.

    Attributes:
        shape: of the weight, [out, in] for a linear layer, [out, in, height, width] for a
            convolution.
        pattern: of its mask.
        tokens: rows of the input; of a convolution pixels of the output.
        dtype, device, threads: as asked.
        forward, input_gradient, weight_gradient: a :class:`Verdict` each.
        images: of a convolution their number, height and width.

    Example:
        >>> print(plan((8, 16), "2:4T", tokens=256, threads=1))
        8 x 16 (out x in), 2:4T, 256 tokens, float32, cpu, 1 thread
        direction        back end      ratio  reason
        forward          dense_masked      -  it has 128 weights, less than 16,384
        input_gradient   dense_masked      -  it has 128 weights, less than 16,384
        weight_gradient  dense_masked      -  it has 128 weights, less than 16,384
    """

    shape: tuple[int, ...]
    pattern: Pattern
    tokens: int
    dtype: torch.dtype
    device: torch.device
    threads: int
    forward: Verdict
    input_gradient: Verdict
    weight_gradient: Verdict
    images: tuple[int, int, int] | None = None

    def __str__(self) -> str:
        sides = " x ".join(map(str, self.shape))
        read, given = " (out x in)", f"{self.tokens} tokens"
        if self.images is not None:
            batch, height, width = self.images
            read = " (out x in x kernel)"
            given = f"{batch} image{'s' if batch != 1 else ''} of {height} x {width}"
        where = str(self.device)
        if self.device.type == "cpu":
            where += ", 1 thread" if self.threads == 1 else f", {self.threads} threads"
        dtype = str(self.dtype).removeprefix("torch.")
        lines = [
            f"{sides}{read}, {self.pattern}, {given}, {dtype}, {where}",
            f"{'direction':15}  {'back end':12}  {'ratio':>5}  reason",
        ]
        for direction in DIRECTIONS:
            verdict: Verdict = getattr(self, direction)
            ratio = "-" if verdict.ratio is None else f"{verdict.ratio:.2f}"
            lines.append(f"{direction:15}  {verdict.backend:12}  {ratio:>5}  {verdict.reason}")
        return "\n".join(lines)


def plan(
    module_or_shape: nn.Module | Sequence[int],
    pattern: str | Pattern | None = None,
    *,
    tokens: int | None = None,
    batch: int | None = None,
    image: Pair | None = None,
    stride: int | Pair | None = None,
    padding: Padding | None = None,
    dilation: int | Pair | None = None,
    channels_last: bool | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    dtype: torch.dtype | None = None,
    training: bool = True,
) -> Plan:
    """Which back end runs a layer, and how much faster than dense it was measured to be.

        ratio = time of dense / time of sparse;  sparse runs where it is above 1.05

    A shape that has not been seen on this machine is measured, which takes about a second; the
    result is kept on disk. Under ``torch.use_deterministic_algorithms(True)`` a fixed rule decides
    instead, see :func:`transposable.sparse.planner.fixed_rule`.

    Args:
        module_or_shape: a linear layer or Conv2d, sparse or dense, or the shape of its weight:
            (out, in), or (out, in, height, width) of a convolution.
        pattern: of the mask; default that of a sparse layer.
        tokens: of a linear layer, rows of the input: batch size times sequence length.
        batch, image: of a convolution, how many images and their (height, width).
        stride, padding, dilation: of a convolution that is given by its shape, as for
            ``F.conv2d``; those of a layer are its own.
        channels_last: format of the images; default that of the layer's weight.
        device: default that of the layer, else the CPU. On a GPU 2:4 masks run on its sparse
            tensor cores, and tokens are rounded down to three bits instead of one.
        threads: of a CPU; default ``torch.get_num_threads()``.
        dtype: of weight and input; default that of the layer, else float32.
        training: whether the weight changes before every call, as in training without gradient
            accumulation: then masking it, or packing its values again, counts with the matmuls.

    Returns:
        A :class:`Plan`.

    Raises:
        PlanError: if the module has no weight, the shape is not two or four numbers, the pattern is
            missing or tokens, batch, image, device, threads or dtype are none.
        SparseFormatError: if stride, padding or dilation are none.
        PatternError: if the pattern cannot be read.

    Warns:
        PlanCacheWarning: if the measurements on disk are damaged or cannot be kept.

    Example:
        >>> verdict = plan((512, 512), "2:4T", tokens=8).forward
        >>> verdict.backend, verdict.reason
        ('dense_masked', '8 tokens are less than 16')
    """
    if isinstance(module_or_shape, nn.Module):
        shape, own_pattern, own_dtype, own_device = _of_module(module_or_shape)
        reason = why_dense(module_or_shape)
    else:
        shape, own_pattern, own_dtype = _checked_shape(module_or_shape), None, torch.float32
        own_device, reason = torch.device("cpu"), None
    if pattern is None and own_pattern is None:
        raise PlanError(
            f"plan: received a weight {shape} without a pattern; give that of its mask, for "
            "example plan((1024, 4096), '4:8T', tokens=256)"
        )
    parsed = Pattern.parse(pattern) if pattern is not None else own_pattern
    assert parsed is not None
    dtype = own_dtype if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise PlanError(f"plan: received dtype={dtype!r}; it is a torch.dtype, as torch.float32")
    where = own_device if device is None else _device(device)
    threads = (
        torch.get_num_threads() if threads is None else checked(threads, "threads", 1, MAX_THREADS)
    )
    question: AnyQuestion
    images = None
    on_gpu = where.type == "cuda"
    if len(shape) == 4 and not reason:
        if tokens is not None:
            raise PlanError(
                f"plan: received tokens={tokens!r} for a convolution {shape}; give the batch and "
                "the size of an image, for example batch=8, image=(56, 56)"
            )
        images = checked_images(batch, image)
        layer = module_or_shape if isinstance(module_or_shape, nn.Conv2d) else None
        window, more = checked_window(layer, shape, stride, padding, dilation)
        if channels_last is None:
            channels_last = layer is not None and is_channels_last(layer.weight)
        question = ConvQuestion(
            *shape[:2],
            window,
            parsed,
            images[0],
            images[1] + more[0],
            images[2] + more[1],
            channels_last,
            dtype,
            threads,
        )
        tokens = question.tokens
    else:
        tokens = checked(tokens, "tokens", 0, 1 << 62)
        question = Question(shape[0], shape[1], parsed, tokens, dtype, threads)
    if on_gpu:
        reason = reason or why_dense_semi(shape, parsed, dtype, where)
        if reason is None:
            bias = getattr(module_or_shape, "bias", None) is not None
            question = semi_question(shape, parsed, tokens, dtype, where, bias=bias)
            reason = why_too_small(question.weights, tokens) or why_unsound_here(question)
    reason = reason or (None if on_gpu else why_not_here(where, dtype))
    if reason is not None:
        verdicts = Verdicts.dense(reason)
    else:
        asked = semi_planner(where) if on_gpu else planner()
        verdicts = asked.verdicts(question, training=training)
        if getattr(module_or_shape, "straight_through", False) and training:
            verdicts = through(verdicts)
    return Plan(
        shape,
        parsed,
        tokens,
        dtype,
        where,
        threads,
        verdicts.forward,
        verdicts.input_gradient,
        verdicts.weight_gradient,
        images,
    )


class Planned:
    """The decision of the plan for one layer that trains, for its :class:`PackedWeight`.

    An input of a kind that was not met before is measured then, unless gradients are being
    computed; see :func:`decide_for`.

    Args:
        rows, cols: out and in of the layer.
        pattern: of its mask.

    Attributes:
        stays_dense: kinds of calls that run dense throughout, for whoever asks at every call to
            look up before it computes a question. Copies have none, for they may be elsewhere.

    Example:
        >>> decide = Planned(64, 64, Pattern.parse("2:4T"))
        >>> decide(4096, torch.float32)
        Choice(forward=False, input_gradient=False, weight_gradient=False)
    """

    __slots__ = ("_known", "cols", "pattern", "rows", "stays_dense")

    def __init__(self, rows: int, cols: int, pattern: Pattern) -> None:
        self.rows, self.cols, self.pattern = rows, cols, pattern
        # Answers of the planner, found without building and hashing a question.
        self._known: dict[tuple[int, torch.dtype, int, bool], Choice] = {}
        self.stays_dense: set[Hashable] = set()

    def known(self, tokens: int, dtype: torch.dtype) -> Choice | None:
        """The answer if it was given before; measures nothing, whatever is going on."""
        return self._known.get(_key(tokens, dtype))

    def __call__(self, tokens: int, dtype: torch.dtype) -> Choice:
        known = self.known(tokens, dtype)
        if known is not None:
            return known
        if dtype not in DTYPES:
            return DENSE
        threads = torch.get_num_threads()
        question = Question(self.rows, self.cols, self.pattern, tokens, dtype, threads)
        in_backward = torch._C._current_graph_task_id() >= 0
        choice = planner().verdicts(question, training=True, may_measure=not in_backward).choice
        if not in_backward:
            self._known[_key(tokens, dtype)] = choice
        return choice

    def __reduce__(self) -> tuple[Any, ...]:
        return Planned, (self.rows, self.cols, self.pattern)  # another machine answers anew

    def __repr__(self) -> str:
        return f"Planned(rows={self.rows}, cols={self.cols}, pattern={self.pattern!r})"


def _key(tokens: int, dtype: torch.dtype) -> tuple[int, torch.dtype, int, bool]:
    # All numbers of tokens of one length in bits have one answer.
    fixed = torch.are_deterministic_algorithms_enabled()
    return tokens.bit_length(), dtype, torch.get_num_threads(), fixed


def decide_for(layer: nn.Module) -> Planned | PlannedConv:
    """What answers, at every call of a sparse layer, which of its matmuls run sparse.

    It is that of ``plan(layer, ..., training=True)``, also in evaluation.

    Args:
        layer: a sparse linear layer or convolution on the CPU.

    Raises:
        PlanError: if it is neither, or has no pattern.

    Complexity: a dictionary lookup for a call, once its number of tokens or images, rounded down to
    a power of two, its dtype and the number of threads have been met.

    Example:
        >>> from transposable import sparsify
        >>> layer = nn.Linear(64, 64)
        >>> changes = sparsify(layer, "2:4T")
        >>> decide_for(layer)
        Planned(rows=64, cols=64, pattern=Pattern('2:4T'))
    """
    shape, pattern, _, _ = _of_module(layer)
    if pattern is not None and len(shape) == 2:
        return Planned(shape[0], shape[1], pattern)
    if pattern is not None and isinstance(layer, nn.Conv2d) and not why_dense_conv(layer):
        return PlannedConv(shape[0], shape[1], window_of(layer)[0], pattern)
    raise PlanError(
        f"decide_for: received a {type(layer).__name__} with a weight {shape}; it takes a sparse "
        "linear layer or Conv2d of one group, padded with zeros: sparsify the model first"
    )


def through(verdicts: Verdicts) -> Verdicts:
    """The verdicts for a layer whose pruned weights receive a gradient too."""
    reason = "straight-through: pruned weights have a gradient too"
    dense = Verdict("dense_masked", None, reason)
    return Verdicts(verdicts.forward, verdicts.input_gradient, dense)


def why_not_here(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no compressed matmul runs on a device with a dtype, or None if one does.

    Example:
        >>> why_not_here(torch.device("cpu"), torch.float64)
        'float64: the compressed matmul takes float32 and bfloat16'
    """
    if device.type != "cpu":
        return f"device {device}: the compressed matmul runs on CPUs"
    if dtype not in DTYPES:
        name = str(dtype).removeprefix("torch.")
        return f"{name}: the compressed matmul takes float32 and bfloat16"
    return None


def why_dense(module: nn.Module) -> str | None:
    """Why a layer runs dense-masked whatever its size, or None if it need not.

    Example:
        >>> why_dense(nn.Conv2d(8, 8, 3, padding_mode="circular"))
        "its padding is 'circular': the compressed convolution pads with zeros"
    """
    weight: Any = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor):
        if hasattr(weight, "_local_tensor"):
            return "its weight is sharded: each rank holds a part of it"
        if weight.dim() != 2 and (reason := why_dense_conv(module)):
            return reason
    if (reason := why_apart(module)) is not None:
        return reason
    weighting = getattr(module, "weighting", "masked")
    if weighting == "soft":
        return "weighting 'soft': the weights are shrunk anew at every step"
    if weighting == "dense":
        return "weighting 'dense': its mask rests"
    return None


def _of_module(
    module: nn.Module,
) -> tuple[tuple[int, ...], Pattern | None, torch.dtype, torch.device]:
    pattern: Any = getattr(module, "pattern", None)
    if not isinstance(pattern, Pattern):
        pattern = None
    weight: Any = getattr(module, "weight", None)
    values: Any = getattr(module, "values", None)
    if isinstance(weight, torch.Tensor) and weight.dim() >= 2:
        shape = tuple(weight.shape)
        if getattr(module, "stored_in_out", False):
            shape = shape[::-1]
        return shape, pattern, weight.dtype, weight.device
    if pattern is not None and isinstance(values, torch.Tensor):  # compressed: no dense weight
        shape = (int(module.out_features), int(module.in_features))  # type: ignore[arg-type]
        return shape, pattern, values.dtype, values.device
    raise PlanError(
        f"plan: received a {type(module).__name__}, which has no weight of its own; it takes one "
        "layer: for those of a model write {name: plan(layer, tokens=256) for name, layer in "
        "transposable.nn.sparse_layers(model).items()}"
    )


def _checked_shape(shape: Any) -> tuple[int, ...]:
    good = isinstance(shape, Sequence) and not isinstance(shape, str | bytes)
    good = good and len(shape) in (2, 4)
    if not good or not all(type(side) is int and side >= 0 for side in shape):
        raise PlanError(
            f"plan: received {shape!r}; it takes a layer, or the shape of its weight: two numbers "
            "(out, in), for example plan((1024, 4096), '4:8T', tokens=256), or four"
        )
    return tuple(shape)


def _device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise PlanError(
            f"plan: received device={device!r}, which torch does not know ({error}); it is for "
            "example 'cpu' or 'cuda'"
        ) from None
