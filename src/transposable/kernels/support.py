"""Which problems the kernels take, and what a launch needs to know about its tensors."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from dataclasses import dataclass
from typing import Final

import torch

KINDS: Final = {
    torch.float32: ("float32", torch.int32),
    torch.bfloat16: ("bfloat16", torch.int16),
    torch.float16: ("float16", torch.int16),
}
"""Names of the dtypes, and integers of their size: kernels read bits, which nothing flushes."""

SIDES: Final = (4, 8, 16, 32)
"""Sides of tiles that kernels are compiled for."""

OLDEST: Final = (8, 0)
"""Least compute capability that the kernels are compiled and tested for."""

_MOST_TILES: Final = 2**31 - 2**16


def elsewhere(matrices: torch.Tensor) -> bool:
    """Whether a tensor is not on the CPU, where the native solvers run."""
    return not matrices.is_cpu


def why_not(matrices: torch.Tensor, m: int) -> str | None:
    """Why no kernel takes these matrices on an accelerator, or None if they are taken.

    Example:
        >>> why_not(torch.empty(1, 8, 8, dtype=torch.float64, device="meta"), 8)
        'the tensor is on meta, and the kernels are for CUDA'
    """
    if matrices.device.type != "cuda":
        return f"the tensor is on {matrices.device}, and the kernels are for CUDA"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if _capability(matrices.device) < OLDEST:
        return "the GPU is older than compute capability 8.0"
    return _why_not_this(matrices, m)


def _why_not_this(matrices: torch.Tensor, m: int) -> str | None:
    if m not in SIDES:
        return f"tiles of {m} x {m} have no kernel (sides: {', '.join(map(str, SIDES))})"
    if matrices.dtype not in KINDS:
        return f"{matrices.dtype} has no kernel (float32, bfloat16 and float16 have)"
    if Tiles.of(matrices, m).count > _MOST_TILES:
        return f"more than {_MOST_TILES} tiles"
    return None


@dataclass(frozen=True, slots=True)
class Tiles:
    """How many tiles [batch, rows, cols] has: down and across a matrix, and in all."""

    rows: int
    cols: int
    down: int
    across: int
    count: int

    @classmethod
    def of(cls, matrices: torch.Tensor, m: int) -> Tiles:
        """The tiles of these matrices.

        Example:
            >>> Tiles.of(torch.empty(2, 8, 9), 4).count
            12
        """
        batch, rows, cols = matrices.shape
        down, across = -(-rows // m), -(-cols // m)
        return cls(rows, cols, down, across, batch * down * across)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """What kernels are told: count, rows, cols, down, across."""
        return self.count, self.rows, self.cols, self.down, self.across


def bits_of(matrices: torch.Tensor) -> tuple[torch.Tensor, str]:
    """The scores as integers of their size, sharing memory, and the name of their dtype."""
    kind, integers = KINDS[matrices.dtype]
    return matrices.view(integers), kind


def strides_of(matrices: torch.Tensor) -> tuple[int, int, int]:
    """Strides of [batch, rows, cols]; 0 where there is no second matrix.

    A launch is compiled for strides that 16 divides, or not: 0 is, and the loads become vectors.

    Example:
        >>> strides_of(torch.empty(1, 3, 5))
        (0, 5, 1)
    """
    batch, row, col = matrices.stride()
    return (batch if len(matrices) > 1 else 0), row, col


def bytes_of(kept: torch.Tensor) -> torch.Tensor:
    """A bool mask as int8, sharing memory."""
    return kept.view(torch.int8)


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a GPU the current one, on whose current stream kernels are launched."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 for Triton's interpreter on a CPU."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
