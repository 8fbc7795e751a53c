"""The convolutions that are timed: their operands, ours and the dense peers, and what must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch.nn import functional as F

from benchmarks.gate import GateError
from transposable import Pattern, find_mask
from transposable.layout import Layout
from transposable.sparse import PackedWeight

Direction = Literal["forward", "input_gradient", "weight_gradient"]
DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)

OURS: Final = ("ours, planes", "ours, channels last")
PEERS: Final = ("torch, planes", "torch, channels last", "oneDNN blocked")

TOLERANCE: Final = 2e-6
"""Largest error, relative to the product of the lengths of what is summed."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution on a batch of square images; stride 1, padded to keep the size."""

    name: str
    into: int
    out: int
    kernel: int
    size: int
    batch: int

    def __str__(self) -> str:
        return (
            f"{self.into} -> {self.out}, {self.kernel} x {self.kernel}, {self.size} x {self.size}, "
            f"batch {self.batch}"
        )

    @property
    def multiplications(self) -> int:
        """Of the dense product."""
        return self.batch * self.size**2 * self.into * self.out * self.kernel**2


CIFAR: Final = tuple(
    Layer("ResNet-20", width, width, 3, size, 128) for width, size in ((16, 32), (32, 16), (64, 8))
)
IMAGENET: Final = (
    *(
        Layer("ResNet-50", w, w, 3, size, 8)
        for w, size in ((64, 56), (128, 28), (256, 14), (512, 7))
    ),
    Layer("ResNet-50", 256, 64, 1, 56, 8),
    Layer("ResNet-50", 512, 128, 1, 28, 8),
    Layer("ResNet-50", 1024, 256, 1, 14, 8),
)
TINY: Final = (Layer("tiny", 16, 16, 3, 6, 2), Layer("tiny", 16, 24, 1, 5, 2))


class Case:
    """One layer under one pattern: every product of it that is timed."""

    def __init__(self, layer: Layer, pattern: Pattern, seed: int) -> None:
        self.layer, self.pattern = layer, pattern
        random = torch.Generator().manual_seed(seed)
        images, kernel = (layer.batch, layer.size, layer.size), (layer.kernel, layer.kernel)
        shape = layer.out, layer.into, *kernel
        self.weight = torch.randn(shape, generator=random)
        self.mask = find_mask(self.weight, pattern, layout=Layout("conv", 1)).tensor
        self.masked = torch.where(self.mask, self.weight, 0.0)
        self.x = torch.randn(images[0], layer.into, *images[1:], generator=random)
        self.dy = torch.randn(images[0], layer.out, *images[1:], generator=random)
        pad = layer.kernel // 2
        self.numbers = [1, 1], [pad, pad], [1, 1]
        # Copies of the weights too: each format is packed once, as a layer would keep it.
        self.packed = {last: PackedWeight(pattern) for last in (False, True)}

    def products(self, direction: Direction) -> dict[str, Callable[[], Any]]:
        """Ours and the peers by name; oneDNN's own format for the forward pass only."""
        found: dict[str, Callable[[], Any]] = {}
        for ours, peer, last in zip(OURS, PEERS, (False, True), strict=False):
            found[ours] = self._ours(direction, last)
            found[peer] = self._torch(direction, last)
        if direction == "forward":
            found[PEERS[2]] = self._onednn()
        return found

    def _operands(self, last: bool) -> tuple[torch.Tensor, ...]:
        layout = torch.channels_last if last else torch.contiguous_format
        named = self.x, self.dy, self.weight, self.mask, self.masked
        return tuple(tensor.contiguous(memory_format=layout) for tensor in named)

    def _ours(self, direction: Direction, last: bool) -> Callable[[], torch.Tensor]:
        x, dy, weight, mask, _ = self._operands(last)
        tag, numbers, ops = self.packed[last].tag, self.numbers, torch.ops.transposable
        size = [self.layer.size, self.layer.size]
        if direction == "forward":
            return lambda: ops.nm_conv2d(x, weight, mask, None, tag, False, *numbers)
        if direction == "input_gradient":
            return lambda: ops.nm_conv2d_input_gradient(dy, weight, mask, tag, size, *numbers, last)
        return lambda: ops.nm_conv2d_weight_gradient(x, dy, mask, tag, *numbers, last)

    def _torch(self, direction: Direction, last: bool) -> Callable[[], torch.Tensor]:
        x, dy, _, _, masked = self._operands(last)
        stride, padding, dilation = self.numbers
        if direction == "forward":
            return lambda: F.conv2d(x, masked, None, stride, padding, dilation)
        wanted = [direction == "input_gradient", direction == "weight_gradient", False]
        place = wanted.index(True)
        return lambda: torch.ops.aten.convolution_backward(
            dy, x, masked, None, stride, padding, dilation, False, [0, 0], 1, wanted
        )[place]

    def _onednn(self) -> Callable[[], torch.Tensor]:
        stride, padding, dilation = self.numbers
        x = self.x.to_mkldnn()
        weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            self.masked.to_mkldnn(), padding, stride, dilation, 1, list(self.x.shape)
        )
        return lambda: torch.mkldnn_convolution(x, weight, None, padding, stride, dilation, 1)

    def check(self, direction: Direction) -> tuple[int, float]:
        """Compare every product with float64's: entries, and the largest error.

        Raises:
            GateError: if one is further off than TOLERANCE, or a pruned weight has a gradient.
        """
        x, dy, masked = (tensor.double() for tensor in (self.x, self.dy, self.masked))
        stride, padding, dilation = self.numbers
        gradient = torch.ops.aten.convolution_backward

        def sums(x: torch.Tensor, dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            if direction == "forward":
                return F.conv2d(x, weight, None, stride, padding, dilation)
            wanted = [direction == "input_gradient", direction == "weight_gradient", False]
            found = gradient(
                dy, x, weight, None, stride, padding, dilation, False, [0, 0], 1, wanted
            )
            result: torch.Tensor = found[wanted.index(True)]
            return result

        expected = sums(x, dy, masked)
        # The lengths of both factors of every sum, squared: the same product of their squares'
        # sums, from above, by Cauchy and Schwarz the largest that an entry can be.
        lengths = sums(x.square(), dy.square(), torch.ones_like(masked)).sqrt()
        other = {
            "forward": masked.square().sum((1, 2, 3)).view(1, -1, 1, 1),
            "input_gradient": masked.square().sum((0, 2, 3)).view(1, -1, 1, 1),
            "weight_gradient": dy.square().sum((0, 2, 3)).view(-1, 1, 1, 1),
        }[direction].sqrt()
        if direction == "weight_gradient":
            lengths = x.square().sum((0, 2, 3)).sqrt().view(1, -1, 1, 1)
        scale = (lengths * other).clamp_min(1e-30)
        entries, worst = 0, 0.0
        for name, product in self.products(direction).items():
            found = product()
            found = (found.to_dense() if found.is_mkldnn else found).double()
            wanted = expected
            if direction == "weight_gradient" and name in OURS:
                wanted = torch.where(self.mask, expected, 0.0)
                if found[~self.mask].any():
                    raise GateError(f"{self}: {name}: a pruned weight has a gradient")
            error = float(((found - wanted).abs() / scale).max())
            if not error <= TOLERANCE:
                raise GateError(
                    f"{self}: {direction}, {name}: error {error:.1e} of the lengths of the two "
                    f"factors, allowed {TOLERANCE:.0e}"
                )
            entries, worst = entries + found.numel(), max(worst, error)
        return entries, worst

    def __str__(self) -> str:
        return f"{self.layer}, {self.pattern}"
