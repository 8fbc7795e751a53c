"""SparseLayer: what every sparse module adds to its dense class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import nn

from transposable.errors import LayerError
from transposable.layout import Layout
from transposable.mask import Mask
from transposable.nn import functional
from transposable.nn.backends import Backend
from transposable.nn.checkpoint import WEIGHTINGS, Weighting, check_state, decode, encode
from transposable.nn.masks import best_mask
from transposable.nn.semi_backend import default_backend
from transposable.nn.sharding import cut_like, local, local_part, whole
from transposable.pattern import Pattern
from transposable.solvers import Solver

BUFFERS = ("mask", "sparsity", "scale")
ATTRIBUTES = ("pattern", "layout", "straight_through", "backend", "_weighting")


class SparseLayer(nn.Module):
    """Mixed into a dense module class: the weight stays dense, the forward pass sees it masked.

        y = f(x, W~),   W~ = S * W with :attr:`weighting` "masked"

    Attributes:
        weight: the dense master weight, the very Parameter of the dense module.
        mask: persistent bool buffer in the shape of the weight, True where it is kept.
        sparsity: persistent int64 buffer [n, m, structure, weighting], so that a state dict says
            what it holds; read :attr:`pattern` and :attr:`weighting` instead.
        scale: persistent 0-d float32 buffer, 0 until weighting "soft" is first set; then fixed, see
            :func:`~transposable.nn.functional.soft_scale`.
        pattern: the :class:`~transposable.Pattern`.
        layout: how [out, in, ...] is read as matrices.
        straight_through: whether pruned weights receive a gradient.
        backend: what runs the matmul. By default that of a linear layer or Conv2d asks the plan,
            see :class:`~transposable.nn.NMCpu` and, on a GPU, :class:`~transposable.nn.NMCuda`;
            any other is dense-masked.
        stored_in_out: whether the weight is stored [in, out].
    """

    dense_class: ClassVar[type[nn.Module]]
    stored_in_out: ClassVar[bool] = False

    weight: torch.Tensor
    mask: torch.Tensor
    sparsity: torch.Tensor
    scale: torch.Tensor
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
    def from_dense(
        cls, dense: nn.Module, pattern: str | Pattern, *, solver: str | Solver = "auto"
    ) -> Self:
        """A sparse module over the Parameters of a dense one, which stays as it is.

        Args:
            dense: exactly of the dense class.
            pattern: the pattern of the mask, for example "2:4T".
            solver: what finds the mask; default the exact one.

        Raises:
            LayerError: if the module is of another class, or the pattern would prune nothing.
            PatternError: if the pattern cannot be read.
            ScoresError: if the weight has a NaN.
            DeviceError: if the weight is on the meta device.

        Example:
            >>> from transposable.nn import SparseLinear
            >>> dense = nn.Linear(16, 8)
            >>> sparse = SparseLinear.from_dense(dense, "2:4T")
            >>> sparse.weight is dense.weight, type(dense).__name__
            (True, 'Linear')
        """
        operation = f"{cls.__name__}.from_dense"
        if type(dense) is not cls.dense_class:
            raise LayerError(
                f"{operation}: received a {type(dense).__name__}; it takes exactly "
                f"{cls.dense_class.__name__}, whose forward pass it repeats with a masked weight; "
                "give such a module, or leave this one dense"
            )
        twin = _shallow(dense)
        cls._convert(twin, pattern, solver, operation)
        assert isinstance(twin, cls)
        return twin

    def to_dense(self) -> nn.Module:
        """A dense module with new Parameters that hold the effective weight, zeros in place.

        Example:
            >>> from transposable.nn import SparseLinear
            >>> dense = SparseLinear(16, 8, pattern="2:4T").to_dense()
            >>> type(dense).__name__, int((dense.weight == 0).sum())
            ('Linear', 64)
        """
        twin = copy.deepcopy(self)
        twin.bake()
        twin.become_dense()
        return twin

    def bake(self) -> None:
        """Write the effective weight into ``weight``, which keeps its identity.

        With weighting "masked" a second call changes nothing; with "soft" it would shrink again.
        """
        if self._weighting != "dense":
            with torch.no_grad():
                weight = local(self.weight)
                weight.copy_(self._weigh(weight, local_part(self.mask, self.weight)))

    def become_dense(self) -> None:
        """Turn this module into its dense class in place, with the weight as it is."""
        for buffer in BUFFERS:
            del self._buffers[buffer]
        for attribute in ATTRIBUTES:
            del self.__dict__[attribute]
        self.__class__ = self.dense_class  # type: ignore[assignment]

    @classmethod
    def _convert(
        cls, dense: nn.Module, pattern: str | Pattern, solver: str | Solver, operation: str
    ) -> None:
        """Turn a dense module into this class in place, with the best mask for its weight."""
        parsed = Pattern.parse(pattern)
        layout = cls.layout_of(dense)
        weight = dense.weight
        assert isinstance(weight, torch.Tensor)
        reason = why_nothing_is_pruned(weight, parsed, layout, cls.stored_in_out)
        if reason is not None:
            raise LayerError(f"{operation}: {reason}; use the dense {cls.dense_class.__name__}")
        mask = best_mask(weight, parsed, layout, cls.stored_in_out, solver, cls.__name__)
        dense.__class__ = cls
        assert isinstance(dense, cls)
        dense._become_sparse(mask, parsed, layout)

    def _become_sparse(self, mask: torch.Tensor, pattern: Pattern, layout: Layout) -> None:
        self.pattern = pattern
        self.layout = layout
        self.straight_through = False
        self._weighting = "masked"
        # In the strides of the weight (channels-last, for example), for one pass over both.
        own = torch.empty_like(self.weight, dtype=torch.bool, requires_grad=False).copy_(mask)
        self.register_buffer("mask", own)
        self.register_buffer("sparsity", encode(pattern, "masked").to(own.device))
        self.register_buffer("scale", torch.zeros((), dtype=torch.float32, device=own.device))
        self.backend = default_backend(self)

    @property
    def weighting(self) -> Weighting:
        """How the forward pass weighs the dense weight: "masked", "soft" or "dense"."""
        return self._weighting

    @weighting.setter
    def weighting(self, weighting: Weighting) -> None:
        if weighting not in WEIGHTINGS:
            raise LayerError(
                f"{type(self).__name__}.weighting: received {weighting!r}; it is one of "
                f"{', '.join(map(repr, WEIGHTINGS))}"
            )
        if weighting == self._weighting:
            return
        if weighting == "soft":
            if self.pattern.structure == "unstructured":
                raise LayerError(
                    f"{type(self).__name__}.weighting: received 'soft' with pattern {self.pattern};"
                    " the soft threshold needs groups of M; use a pattern such as '2:4' or '2:4T'"
                )
            if self.scale == 0:
                self.scale.copy_(self.best_scale())
        self._weighting = weighting
        self.sparsity[3] = WEIGHTINGS.index(weighting)

    def effective_weight(self) -> torch.Tensor:
        """The weight that the forward pass uses, in the shape of ``weight``, differentiable.

        Example:
            >>> from transposable.nn import SparseLinear
            >>> layer = SparseLinear(16, 8, pattern="2:4T")
            >>> bool((layer.effective_weight()[~layer.mask] == 0).all())
            True
        """
        return self._weigh(self.weight, cut_like(self.mask, self.weight))

    def best_scale(self) -> torch.Tensor:
        """The ``scale`` for the weight of now; under FSDP all ranks must call it together.

        Example:
            >>> from transposable.nn import SparseLinear
            >>> bool(SparseLinear(16, 8, pattern="2:4").best_scale() > 1)
            True
        """
        weight, mask = self._out_in(whole(self.weight), self.mask)
        return functional.soft_scale(weight, mask, self.pattern.m)

    def as_mask(self) -> Mask:
        """The mask with its pattern and layout, [out, in] first; see :class:`transposable.Mask`."""
        mask = self.mask.t() if self.stored_in_out else self.mask
        return Mask(mask.cpu(), self.pattern, layout=self.layout)

    def adopt_code(self) -> None:
        """Make :attr:`weighting` and ``sparsity`` agree after something else wrote the buffers.

        A copy of another model's buffers brings its weighting, which is adopted; an average over
        buffers may have mixed the code to one of another pattern or of none, which is put right.
        """
        held = decode(self.sparsity)
        if held is not None and held[0] == self.pattern:
            self._weighting = held[1]
        else:
            self.sparsity.copy_(encode(self.pattern, self._weighting))

    def dense_forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The dense class's operator with the given weight and this module's bias."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backend.run(self, x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pattern={self.pattern}"

    def _weigh(self, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._weighting == "dense":
            return weight
        if self._weighting == "masked":
            return functional.masked(weight, mask, straight_through=self.straight_through)
        soft = functional.soft_thresholded(*self._out_in(weight, mask), self.pattern.m, self.scale)
        return soft.t() if self.stored_in_out else soft

    def _out_in(
        self, weight: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (weight.t(), mask.t()) if self.stored_in_out else (weight, mask)

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
        check_state(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        held = decode(self.sparsity)
        if held is not None:
            self._weighting = held[1]


def why_nothing_is_pruned(
    weight: torch.Tensor, pattern: Pattern, layout: Layout, stored_in_out: bool
) -> str | None:
    """Why a pattern keeps every weight of a layer this small, or None if it prunes some."""
    if pattern.structure == "unstructured":
        kept = -(-weight.numel() * pattern.n // pattern.m)
        if kept < weight.numel():
            return None
        return f"its weight has {weight.numel()} entries, of which {pattern} prunes none"
    shape = tuple(weight.t().shape if stored_in_out else layout.matrices(weight).shape)
    rows, cols = shape[-2:]
    if (rows and cols > pattern.n) or (pattern.transposable and cols and rows > pattern.n):
        return None
    return (
        f"its weight is {rows} x {cols} to the matmul (out x in, per group), of which {pattern} "
        "prunes none"
    )


def _shallow(module: nn.Module) -> nn.Module:
    """A second module over the same Parameters, whose own dictionaries may be changed."""
    twin = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, (dict, set)):
            twin.__dict__[key] = value.copy()
    return twin
