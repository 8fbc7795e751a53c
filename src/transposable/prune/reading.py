"""How a layer is a set of linear regressions: inputs, outputs and weights as matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

CHUNK = 1 << 24
"""Entries of the largest input matrix that is built at once: 64 MiB in float32."""


@dataclass(frozen=True)
class Reading:
    """A layer y = W x + b as ``groups`` regressions of ``rows`` outputs on ``cols`` inputs.

        y[g, s, :] = W[g] x[g, s, :] + b[g]

    A convolution has one sample s for each output position. Its columns run over kernel positions
    first and input channels second, so that the tiles of a pattern are consecutive columns.

    Attributes:
        groups: independent regressions, which see different inputs.
        rows: outputs of one group.
        positions: kernel positions; 1 but for convolutions.
        channels: inputs of one group at one kernel position.
        stored_in_out: whether the weight is stored [in, out].
        space: dimensions that a convolution runs over, 0 for a linear layer.
    """

    groups: int
    rows: int
    positions: int
    channels: int
    stored_in_out: bool = False
    space: int = 0

    @classmethod
    def of(cls, module: nn.Module) -> Reading:
        """How an nn.Linear, nn.Conv1d, nn.Conv2d or transformers' Conv1D is read.

        Example:
            >>> Reading.of(nn.Conv2d(8, 16, 3, groups=2)).shape
            (2, 8, 36)
        """
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            out, channels, *kernel = weight.shape
            groups = module.groups
            return cls(groups, out // groups, math.prod(kernel), channels, space=len(kernel))
        if isinstance(module, nn.Linear):
            return cls(1, weight.shape[0], 1, weight.shape[1])
        return cls(1, weight.shape[1], 1, weight.shape[0], stored_in_out=True)

    @property
    def conv(self) -> bool:
        """Whether inputs are [batch, channels, *space]."""
        return self.space > 0

    @property
    def cols(self) -> int:
        """Inputs of one group."""
        return self.positions * self.channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """[groups, rows, cols]."""
        return self.groups, self.rows, self.cols

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight, or a tensor in its shape, as [groups, rows, cols]."""
        if self.stored_in_out:
            return weight.t().unsqueeze(0)
        by_channel = weight.reshape(self.groups, self.rows, self.channels, self.positions)
        return by_channel.transpose(2, 3).reshape(self.shape)

    def weight(self, matrix: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The inverse of :meth:`matrix`."""
        if self.stored_in_out:
            return matrix.squeeze(0).t()
        by_position = matrix.reshape(self.groups, self.rows, self.positions, self.channels)
        return by_position.transpose(2, 3).reshape(shape)

    def tiles(self, matrix: torch.Tensor) -> torch.Tensor:
        """[groups, rows, cols] as matrices [groups * positions, rows, channels] with tiles."""
        split = matrix.reshape(self.groups, self.rows, self.positions, self.channels)
        return split.transpose(1, 2).reshape(-1, self.rows, self.channels)

    def untile(self, matrices: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`tiles`."""
        split = matrices.reshape(self.groups, self.positions, self.rows, self.channels)
        return split.transpose(1, 2).reshape(self.shape)

    def outputs(self, y: torch.Tensor) -> torch.Tensor:
        """What a layer returned, as [groups, samples, rows]."""
        if not self.conv:
            return y.reshape(1, -1, self.rows)
        positions = math.prod(y.shape[y.ndim - self.space :])
        batched = y.reshape(-1, self.groups, self.rows, positions)
        return batched.permute(1, 0, 3, 2).reshape(self.groups, -1, self.rows)

    def inputs(self, module: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """What a layer was given, as parts [groups, samples, cols], in the order of its outputs."""
        if not self.conv:
            yield x.reshape(1, -1, self.cols)
            return
        assert isinstance(module, (nn.Conv1d, nn.Conv2d))
        if x.ndim == self.space + 1:
            x = x.unsqueeze(0)
        padded = _padded(module, x)
        out = _output_size(module, padded)
        step = max(1, CHUNK // max(self.groups * self.cols * math.prod(out), 1))
        for part in torch.split(padded, step):
            yield self._patches(module, part, out)

    def _patches(
        self, module: nn.Conv1d | nn.Conv2d, x: torch.Tensor, out: list[int]
    ) -> torch.Tensor:
        batch = x.shape[0]
        patches = x.new_empty(self.groups, batch, *out, self.positions, self.channels)
        split = x.reshape(batch, self.groups, self.channels, *x.shape[2:]).movedim(2, -1)
        split = split.transpose(0, 1)
        for place in range(self.positions):
            index = _unravel(place, module.kernel_size)
            view = split
            for axis, (at, stride, dilation, size) in enumerate(
                zip(index, module.stride, module.dilation, out, strict=True)
            ):
                first = at * dilation
                view = view[
                    (slice(None),) * (2 + axis)
                    + (slice(first, first + stride * (size - 1) + 1, stride),)
                ]
            patches[..., place, :] = view
        return patches.reshape(self.groups, -1, self.cols)


def _padded(module: nn.Conv1d | nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    pads = module._reversed_padding_repeated_twice  # resolves "same" and every padding_mode
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, pads, mode=mode) if any(pads) else x


def _output_size(module: nn.Conv1d | nn.Conv2d, padded: torch.Tensor) -> list[int]:
    return [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            padded.shape[2:], module.kernel_size, module.stride, module.dilation, strict=True
        )
    ]


def _unravel(place: int, kernel: tuple[int, ...]) -> list[int]:
    index = []
    for size in reversed(kernel):
        place, digit = divmod(place, size)
        index.append(digit)
    return index[::-1]
