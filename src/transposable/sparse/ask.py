"""plan: what runs a layer, and why, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transposable.errors import PlanError
from transposable.pattern import Pattern
from transposable.sparse.measure import DIRECTIONS, Question
from transposable.sparse.packed import Choice
from transposable.sparse.planner import Verdict, Verdicts, planner

MAX_THREADS = 1024

_DTYPES = (torch.float32, torch.bfloat16)
_DENSE = Choice(forward=False, input_gradient=False, weight_gradient=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs each direction of a layer; its text is a table.

    Attributes:
        shape: of the weight, [out, in] for a linear layer.
        pattern: of its mask.
        tokens: rows of the input.
        dtype, device, threads: as asked.
        forward, input_gradient, weight_gradient: a :class:`Verdict` each.

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

    def __str__(self) -> str:
        sides = " x ".join(map(str, self.shape))
        read = " (out x in)" if len(self.shape) == 2 else ""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        dtype = str(self.dtype).removeprefix("torch.")
        lines = [
            f"{sides}{read}, {self.pattern}, {self.tokens} tokens, {dtype}, {self.device}, "
            f"{threads}",
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
    tokens: int,
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
        module_or_shape: a linear layer, sparse or dense, or the shape of its weight (out, in).
        pattern: of the mask; default that of a sparse layer.
        tokens: rows of the input: batch size times sequence length.
        device: default that of the layer, else the CPU. Only CPUs have a compressed matmul.
        threads: default ``torch.get_num_threads()``.
        dtype: of weight and input; default that of the layer, else float32.
        training: whether the weight changes before every call, as in training without gradient
            accumulation: then masking it, or packing its values again, counts with the matmuls.

    Returns:
        A :class:`Plan`.

    Raises:
        PlanError: if the module has no weight, the shape is not two numbers, the pattern is missing
            or tokens, device, threads or dtype are none.
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
    tokens = _checked(tokens, "tokens", 0, 1 << 62)
    threads = (
        torch.get_num_threads() if threads is None else _checked(threads, "threads", 1, MAX_THREADS)
    )
    reason = reason or why_not_here(where, dtype)
    if reason is not None:
        verdicts = Verdicts.dense(reason)
    else:
        question = Question(shape[0], shape[1], parsed, tokens, dtype, threads)
        verdicts = planner().verdicts(question, training=training)
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
    )


class Planned:
    """The decision of the plan for one layer that trains, for its :class:`PackedWeight`.

    An input of a kind that was not met before is measured then, unless gradients are being
    computed; see :func:`decide_for`.

    Args:
        rows, cols: out and in of the layer.
        pattern: of its mask.

    Example:
        >>> decide = Planned(64, 64, Pattern.parse("2:4T"))
        >>> decide(4096, torch.float32)
        Choice(forward=False, input_gradient=False, weight_gradient=False)
    """

    __slots__ = ("_known", "cols", "pattern", "rows")

    def __init__(self, rows: int, cols: int, pattern: Pattern) -> None:
        self.rows, self.cols, self.pattern = rows, cols, pattern
        # Answers of the planner, found without building and hashing a question.
        self._known: dict[tuple[int, torch.dtype, int, bool], Choice] = {}

    def known(self, tokens: int, dtype: torch.dtype) -> Choice | None:
        """The answer if it was given before; measures nothing, whatever is going on."""
        return self._known.get(_key(tokens, dtype))

    def __call__(self, tokens: int, dtype: torch.dtype) -> Choice:
        known = self.known(tokens, dtype)
        if known is not None:
            return known
        if dtype not in _DTYPES:
            return _DENSE
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


def decide_for(layer: nn.Module) -> Planned:
    """What answers, at every call of a sparse linear layer, which of its matmuls run sparse.

    It is that of ``plan(layer, ..., training=True)``, also in evaluation.

    Args:
        layer: a sparse linear layer on the CPU.

    Raises:
        PlanError: if it is no linear layer, or has no pattern.

    Complexity: a dictionary lookup for a call, once its number of tokens, rounded down to a power
    of two, its dtype and the number of threads have been met.

    Example:
        >>> from transposable import sparsify
        >>> layer = nn.Linear(64, 64)
        >>> changes = sparsify(layer, "2:4T")
        >>> decide_for(layer)
        Planned(rows=64, cols=64, pattern=Pattern('2:4T'))
    """
    shape, pattern, _, _ = _of_module(layer)
    if pattern is None or len(shape) != 2:
        raise PlanError(
            f"decide_for: received a {type(layer).__name__} with a weight {shape}; it takes a "
            "sparse linear layer: sparsify the model first"
        )
    return Planned(shape[0], shape[1], pattern)


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
    if dtype not in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        return f"{name}: the compressed matmul takes float32 and bfloat16"
    return None


def why_dense(module: nn.Module) -> str | None:
    """Why a layer runs dense-masked whatever its size, or None if it need not.

    Example:
        >>> why_dense(nn.Conv2d(8, 8, 3))
        'its weight has 4 dimensions: the compressed matmul is for linear layers'
    """
    weight: Any = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor):
        if hasattr(weight, "_local_tensor"):
            return "its weight is sharded: each rank holds a part of it"
        if weight.dim() != 2:
            dims = weight.dim()
            return f"its weight has {dims} dimensions: the compressed matmul is for linear layers"
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


def _checked_shape(shape: Any) -> tuple[int, int]:
    good = isinstance(shape, Sequence) and not isinstance(shape, str | bytes) and len(shape) == 2
    if not good or not all(type(side) is int and side >= 0 for side in shape):
        raise PlanError(
            f"plan: received {shape!r}; it takes a layer, or the shape of its weight: two numbers "
            "(out, in), for example plan((1024, 4096), '4:8T', tokens=256)"
        )
    return shape[0], shape[1]


def _checked(number: Any, name: str, least: int, most: int) -> int:
    if type(number) is not int or not least <= number <= most:
        rule = f"an integer of at least {least}" + (f", at most {most}" if most < 1 << 62 else "")
        raise PlanError(f"plan: received {name}={number!r}; it must be {rule}")
    return number


def _device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise PlanError(
            f"plan: received device={device!r}, which torch does not know ({error}); it is for "
            "example 'cpu' or 'cuda'"
        ) from None
