"""The sparse modules: Linear, Conv1d, Conv2d with a masked weight."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from transposable.layout import Layout
from transposable.nn.layer import SparseLayer
from transposable.pattern import Pattern
from transposable.solvers import Solver


class SparseLinear(SparseLayer, nn.Linear):
    """``nn.Linear`` whose weight [out, in] is masked: y = x (S * W)^T + b.

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``.
        pattern: the pattern of the mask, for example "2:4T".
        solver: what finds the mask; default the exact one.

    Raises:
        PatternError: if the pattern cannot be read.
        LayerError: if it prunes nothing of a weight this small.

    Example:
        >>> layer = SparseLinear(16, 8, pattern="2:4T")
        >>> layer(torch.ones(3, 16)).shape, layer.as_mask().violations()
        (torch.Size([3, 8]), 0)
    """

    dense_class: ClassVar[type[nn.Module]] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        pattern: str | Pattern,
        solver: str | Solver = "auto",
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self._convert(self, pattern, solver, type(self).__name__)

    def dense_forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight, self.bias)

    def become_dense(self) -> None:
        for key in [k for k, hook in self._forward_pre_hooks.items() if hook is no_fast_path]:
            del self._forward_pre_hooks[key]
        super().become_dense()

    def _become_sparse(self, mask: torch.Tensor, pattern: Pattern, layout: Layout) -> None:
        super()._become_sparse(mask, pattern, layout)
        self.register_forward_pre_hook(no_fast_path)


def no_fast_path(module: nn.Module, inputs: Any) -> None:
    """Nothing; but with a hook in it ``nn.TransformerEncoderLayer`` calls its layers in eval mode.

    Without one it hands ``linear1.weight`` and ``linear2.weight`` to a fused operator, which would
    compute with the dense weights.
    """


class _SparseConv(SparseLayer, _ConvNd):
    """What the sparse convolutions share; mixed into a dense one, whose operator it calls."""

    def __init__(
        self, *args: Any, pattern: str | Pattern, solver: str | Solver = "auto", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._convert(self, pattern, solver, type(self).__name__)

    @classmethod
    def layout_of(cls, dense: nn.Module) -> Layout:
        return Layout("conv", dense.groups)  # type: ignore[arg-type]

    def dense_forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._conv_forward(x, weight, self.bias)
        return y


class SparseConv1d(_SparseConv, nn.Conv1d):
    """``nn.Conv1d`` whose weight [Cout, Cin/groups, k] is masked at every kernel position.

    Args:
        pattern: the pattern of the mask; a tile spans M output and M input channels at one
            position of one group.
        solver: what finds the mask; default the exact one.
        Others as for ``nn.Conv1d``.

    Example:
        >>> layer = SparseConv1d(8, 16, 3, pattern="4:8T")
        >>> layer.as_mask().density, layer.as_mask().violations()
        (0.5, 0)
    """

    dense_class: ClassVar[type[nn.Module]] = nn.Conv1d


class SparseConv2d(_SparseConv, nn.Conv2d):
    """``nn.Conv2d`` whose weight [Cout, Cin/groups, kh, kw] is masked at every kernel position.

    Args:
        pattern: the pattern of the mask; a tile spans M output and M input channels at one
            position of one group.
        solver: what finds the mask; default the exact one.
        Others as for ``nn.Conv2d``.

    Example:
        >>> layer = SparseConv2d(16, 16, 3, padding=1, pattern="2:4T")
        >>> layer(torch.ones(1, 16, 8, 8)).shape, layer.as_mask().violations()
        (torch.Size([1, 16, 8, 8]), 0)
    """

    dense_class: ClassVar[type[nn.Module]] = nn.Conv2d
