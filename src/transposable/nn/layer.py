"""SparseLayer: what every sparse module adds to its dense class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal, Self, get_args

import torch
from torch import nn

from transposable.errors import CheckpointError, LayerError
from transposable.layout import Layout
from transposable.mask import Mask
from transposable.nn import functional
from transposable.nn.backends import DENSE_MASKED, Backend
from transposable.nn.masks import best_mask
from transposable.pattern import Pattern, Structure
from transposable.solvers import Solver

Weighting = Literal["masked", "soft", "dense"]
"""masked: S * W.  soft: S-STE's shrunk weights.  dense: W itself, the mask rests."""

_STRUCTURES: Final = get_args(Structure)
_WEIGHTINGS: Final = get_args(Weighting)


class SparseLayer(nn.Module):
    """Mixed into a dense module class: the weight stays dense, the forward pass sees it masked.

    Attributes:
        weight: the dense master weight, the very Parameter of the dense module.
        mask: persistent bool buffer in the shape of the weight, True where it is kept.
        sparsity: persistent int64 buffer [n, m, structure, weighting], so that a state dict says
            what it holds; read :attr:`pattern` and :attr:`weighting` instead.
        scale: only with weighting "soft": persistent float32 buffer, see
            :func:`~transposable.nn.functional.soft_scale`.
        straight_through: whether pruned weights receive a gradient.
        backend: what runs the matmul.
    """

    dense_class: ClassVar[type[nn.Module]]
    stored_in_out: ClassVar[bool] = False

    weight: torch.Tensor
    mask: torch.Tensor
    sparsity: torch.Tensor
    scale: torch.Tensor | None
    pattern: Pattern
    layout: Layout
    straight_through: bool
    backend: Backend
    _weighting: Weighting

    @classmethod
    def layout_of(cls, dense: nn.Module) -> Layout:
        """How the weight of a dense module is read as matrices."""
        return Layout("linear")

    @classmethod
    def convert(
        cls, dense: nn.Module, pattern: str | Pattern, *, solver: str | Solver = "auto", name: str
    ) -> None:
        """Turn a dense module into this class in place, with the best mask for its weight."""
        parsed = Pattern.parse(pattern)
        layout = cls.layout_of(dense)
        weight = dense.weight
        assert isinstance(weight, torch.Tensor)
        check_prunes(weight, parsed, layout, name)
        mask = best_mask(weight, parsed, layout, cls.stored_in_out, solver, name)
        dense.__class__ = cls
        assert isinstance(dense, cls)
        dense._become_sparse(mask, parsed, layout)

    @classmethod
    def from_dense(
        cls, dense: nn.Module, pattern: str | Pattern, *, solver: str | Solver = "auto"
    ) -> Self:
        """A sparse module with the Parameters of a dense one, which stays as it is.

        Raises:
            LayerError: if the module is of another class, or the pattern would prune nothing.
        """
        if type(dense) is not cls.dense_class:
            raise LayerError(
                f"{cls.__name__}.from_dense: received a {type(dense).__name__}; it takes exactly "
                f"{cls.dense_class.__name__}, whose forward pass it repeats with a masked weight"
            )
        twin = _shallow(dense)
        cls.convert(twin, pattern, solver=solver, name=type(dense).__name__)
        assert isinstance(twin, cls)
        return twin

    def to_dense(self) -> nn.Module:
        """A dense module with new Parameters that hold the effective weight, zeros in place."""
        twin = copy.deepcopy(self)
        twin.become_dense()
        return twin

    def become_dense(self) -> None:
        """Turn this module into its dense class in place; the weight gets its zeros.

        The Parameter keeps its identity. With weighting "dense" the weight stays as it is.
        """
        with torch.no_grad():
            if self._weighting != "dense":
                self.weight.copy_(self.effective_weight())
        for buffer in ("mask", "sparsity", "scale"):
            self._buffers.pop(buffer, None)
            self._non_persistent_buffers_set.discard(buffer)
        for attribute in ("pattern", "layout", "straight_through", "backend", "_weighting"):
            del self.__dict__[attribute]
        self.__class__ = self.dense_class  # type: ignore[assignment]

    def _become_sparse(self, mask: torch.Tensor, pattern: Pattern, layout: Layout) -> None:
        self.pattern = pattern
        self.layout = layout
        self.straight_through = False
        self.backend = DENSE_MASKED
        self._weighting = "masked"
        self.register_buffer("mask", mask)
        self.register_buffer("sparsity", self._code().to(mask.device))
        self.register_buffer("scale", None)

    @property
    def weighting(self) -> Weighting:
        """How the forward pass weighs the dense weight: "masked", "soft" or "dense"."""
        return self._weighting

    @weighting.setter
    def weighting(self, weighting: Weighting) -> None:
        if weighting not in _WEIGHTINGS:
            raise LayerError(
                f"{type(self).__name__}.weighting: received {weighting!r}; it is one of "
                f"{', '.join(_WEIGHTINGS)}"
            )
        if weighting == "soft" and self.scale is None:
            self.scale = functional.soft_scale(*self._out_in(), self.pattern.m)
        if weighting != self._weighting:
            self._weighting = weighting
            self.sparsity[3] = _WEIGHTINGS.index(weighting)

    def effective_weight(self) -> torch.Tensor:
        """The weight that the forward pass uses, in the shape of ``weight``, differentiable."""
        if self._weighting == "dense":
            return self.weight
        if self._weighting == "masked":
            return functional.masked(self.weight, self.mask, straight_through=self.straight_through)
        assert self.scale is not None
        soft = functional.soft_thresholded(*self._out_in(), self.pattern.m, self.scale)
        return soft.t() if self.stored_in_out else soft

    def as_mask(self) -> Mask:
        """The mask with its pattern and layout, [out, in] first; see :class:`transposable.Mask`."""
        mask = self.mask.t() if self.stored_in_out else self.mask
        return Mask(mask.cpu(), self.pattern, layout=self.layout)

    def dense_forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The dense class's operator with the given weight and this module's bias."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backend.run(self, x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pattern={self.pattern}"

    def _out_in(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.stored_in_out:
            return self.weight.t(), self.mask.t()
        return self.weight, self.mask

    def _code(self) -> torch.Tensor:
        pattern = self.pattern
        structure = _STRUCTURES.index(pattern.structure)
        weighting = _WEIGHTINGS.index(self._weighting)
        return torch.tensor([pattern.n, pattern.m, structure, weighting])

    def check_state(self, state: dict[str, Any], prefix: str) -> None:
        """Raise CheckpointError when a state dict holds another pattern for this layer."""
        code = state.get(f"{prefix}sparsity")
        if code is None:
            return
        n, m, structure, weighting = code.tolist()
        held = Pattern(n, m, _STRUCTURES[structure])
        if held != self.pattern:
            raise CheckpointError(
                f"load_state_dict: layer {prefix.rstrip('.') or type(self).__name__!r} has pattern "
                f"{self.pattern}, and the checkpoint holds {held}; sparsify the model with the "
                "pattern of the checkpoint before loading it"
            )
        assert 0 <= weighting < len(_WEIGHTINGS)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # .bfloat16() and the like are for what is trained: a rounded scale would be another run.
        before = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if before is not None and self.scale is not None and self.scale.dtype != before.dtype:
            self.scale = before.to(self.scale.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.check_state(state_dict, prefix)
        if f"{prefix}scale" in state_dict and self.scale is None:
            self.scale = torch.ones((), device=self.mask.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if f"{prefix}sparsity" in state_dict:
            self._weighting = _WEIGHTINGS[int(self.sparsity[3])]


def check_prunes(weight: torch.Tensor, pattern: Pattern, layout: Layout, name: str) -> None:
    """Raise LayerError when the pattern keeps every weight of a matrix this small."""
    if pattern.structure == "unstructured" and weight.numel() > 1:
        return
    shape = layout.matrices(weight).shape
    rows, cols = shape[-2:]
    if cols <= pattern.n and not (pattern.transposable and rows > pattern.n):
        raise LayerError(
            f"sparsify: layer {name!r} is {rows} x {cols} to its matmul (out x in, per group), and "
            f"{pattern} prunes nothing of so few; leave it dense with exclude={name!r}"
        )


def _shallow(module: nn.Module) -> nn.Module:
    """A second module over the same Parameters, whose own dictionaries may be changed."""
    twin = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, (dict, set)):
            twin.__dict__[key] = value.copy()
    return twin
