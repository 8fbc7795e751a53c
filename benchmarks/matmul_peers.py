"""The dense matrix products that the sparse ones are held against: torch, oneDNN, OpenBLAS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch.nn import functional as F

from benchmarks import onednn

Direction = Literal["forward", "input_gradient", "weight_gradient"]

DIRECTIONS: Final[tuple[Direction, ...]] = ("forward", "input_gradient", "weight_gradient")
TITLES: Final[dict[Direction, str]] = {
    "forward": "forward, y = x W^T",
    "input_gradient": "input gradient, dx = dy W",
    "weight_gradient": "weight gradient, dW = dy^T x",
}
TORCH: Final[dict[Direction, str]] = {
    "forward": "F.linear",
    "input_gradient": "torch dy @ W",
    "weight_gradient": "torch dy.T @ x",
}
"""What PyTorch runs without being asked; every direction's second yardstick beside the best."""

OPENBLAS: Final = "numpy"
ONEDNN: Final = "oneDNN"


@dataclass(frozen=True, slots=True)
class Operands:
    """One layer and one batch, in the dtype of the section.

    Attributes:
        x: activations [tokens, in].
        dy: gradient of the output [tokens, out].
        weight: dense [out, in].
    """

    x: torch.Tensor
    dy: torch.Tensor
    weight: torch.Tensor

    @property
    def flops(self) -> int:
        """Operations of one dense product, the same in every direction."""
        return 2 * self.x.shape[0] * self.weight.numel()


@dataclass(frozen=True, slots=True)
class Peer:
    """A dense product: the timed call, and its result as a plain tensor for the gate."""

    name: str
    call: Callable[[], Any]
    plain: Callable[[Any], torch.Tensor] = lambda result: result


def dense_peers(direction: Direction, of: Operands) -> Iterator[Peer]:
    """Every dense product of a direction that this torch, numpy and dtype offer."""
    x, dy, weight = of.x, of.dy, of.weight
    if direction == "forward":
        yield Peer(TORCH[direction], lambda: F.linear(x, weight))
        yield from _onednn_linear(x, weight)
        yield from _numpy(lambda a, _, w: a @ w.T, of)
    elif direction == "input_gradient":
        yield Peer(TORCH[direction], lambda: dy @ weight)
        # A transposed copy of the weight, made beforehand, as our transposed stream is.
        yield from _onednn_linear(dy, weight.t().contiguous())
        yield from _numpy(lambda _, d, w: d @ w, of)
    else:
        yield Peer(TORCH[direction], lambda: dy.t() @ x)
        yield from _onednn_weight_gradient(x, dy)
        yield from _numpy(lambda a, d, _: d.T @ a, of)


def reorder(of: Operands) -> Callable[[], Any] | None:
    """The conversion of the activations that oneDNN's forward product is spared; None without it.

    It is timed beside the peers and added to none of them.
    """
    return of.x.to_mkldnn if onednn.computes(of.x.dtype) else None


def missing(direction: Direction, of: Operands) -> list[str]:
    """The peers that are not measured, with the reason, for the results file."""
    offered = {peer.name for peer in dense_peers(direction, of)}
    lines = []
    if ONEDNN not in offered:
        lines.append(f"{ONEDNN}, {direction}: not offered for {of.x.dtype} on this machine")
    if OPENBLAS not in offered:
        lines.append(f"{OPENBLAS}: it has no {of.x.dtype}")
    return lines


def _onednn_linear(x: torch.Tensor, weight: torch.Tensor) -> Iterator[Peer]:
    linear = getattr(torch._C._nn, "mkldnn_linear", None)
    if linear is None or not onednn.computes(x.dtype):
        return
    blocked_x, blocked_weight = x.to_mkldnn(), weight.to_mkldnn()
    yield Peer(ONEDNN, lambda: linear(blocked_x, blocked_weight), lambda result: result.to_dense())


def _onednn_weight_gradient(x: torch.Tensor, dy: torch.Tensor) -> Iterator[Peer]:
    if onednn.available(x.dtype):
        yield Peer(ONEDNN, lambda: onednn.weight_gradient(x, dy))


def _numpy(product: Callable[[Any, Any, Any], Any], of: Operands) -> Iterator[Peer]:
    if of.x.dtype != torch.float32:
        return
    x, dy, weight = (tensor.numpy() for tensor in (of.x, of.dy, of.weight))
    yield Peer(OPENBLAS, lambda: product(x, dy, weight), torch.from_numpy)
