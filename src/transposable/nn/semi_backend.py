"""NMCuda: linear layers that train on the sparse tensor cores of a GPU, in both passes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import nn
from torch.nn.utils import parametrize

from transposable.errors import LayerError
from transposable.nn.backends import DENSE_MASKED, Backend
from transposable.nn.packed_backend import PLAIN, NMCpu, can_be_an_operator, default_on_cpu
from transposable.nn.sharding import is_sharded
from transposable.sparse import Decide, PlannedSemi, SemiWeight, always_sparse
from transposable.sparse.ask_semi import why_apart, why_not_packed
from transposable.sparse.choice import DecidesByDevice
from transposable.sparse.planner import why_too_small
from transposable.sparse.semi import FORMATS, Format
from transposable.sparse.semi.operand import hardware_pattern
from transposable.sparse.semi.weight import WeightGradient

if TYPE_CHECKING:
    from transposable.nn.layer import SparseLayer

FormatName = Literal["auto", "cusparselt", "cutlass", "reference"]
_AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)


class NMCuda(Backend):
    """y = x (S * W)^T + b and dx = dy (S * W) on sparse tensor cores, for 2:4-transposable masks.

    Numbers are those of :class:`~transposable.nn.DenseMasked` up to the order of sums. One given
    mask is packed, and nothing is selected again. The weight is packed once for each optimizer step
    and direction, whatever the number of micro-batches; see
    :class:`~transposable.sparse.SemiWeight` for what counts as a change. Under autocast a float32
    weight is packed in the dtype of autocast.

    What the operators cannot do runs dense-masked, at the moment it is asked for: a weighting that
    is not "masked", other dtypes and devices, sides that are no multiples of 16, sharded or
    parametrized weights, transforms of ``torch.func``, forward-mode derivatives, ``torch.export``.

    Args:
        plan: which matmuls run sparse. "auto": those that are faster so on this GPU, see
            :func:`transposable.sparse.plan`, measured at the first forward pass. "always": all that
            can. Or a :data:`~transposable.sparse.Decide`.
        format: "auto": cuSPARSELt, or CUTLASS on Ampere without it. Or one of them by name;
            "reference" is the readable twin, slow, for any device.
        weight_gradient: "dense", or "mvue": dy^T x with an unbiased 2:4 estimate of dy^T.

    Raises:
        LayerError: if one of them is something else.

    Attributes:
        plan, format, weight_gradient: as given.
        packed: the packed weight; each layer has its own from
            :func:`~transposable.nn.use_backend`.

    Example:
        >>> from transposable.nn import sparse_layers, sparsify, use_backend
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
        >>> changes = sparsify(model, "2:4T")
        >>> use_backend(sparse_layers(model), NMCuda("always", format="cusparselt"))["0"]
        'its weight is on cpu, and cusparselt runs on CUDA'
        >>> use_backend(sparse_layers(model), NMCuda("always", format="reference"))
        {}
    """

    name: ClassVar[str] = "nm_cuda"

    def __init__(
        self,
        plan: Literal["auto", "always"] | Decide = "auto",
        *,
        format: FormatName = "auto",
        weight_gradient: WeightGradient = "dense",
    ) -> None:
        if plan not in ("auto", "always") and not callable(plan):
            raise LayerError(
                f"NMCuda: received plan={plan!r}; it is 'auto' (what is faster here), 'always', or "
                "a function of the number of tokens and their dtype that returns a Choice"
            )
        if format != "auto" and format not in FORMATS:
            raise LayerError(
                f"NMCuda: received format={format!r}; it is 'auto' or one of "
                f"{', '.join(map(repr, FORMATS))}"
            )
        if weight_gradient not in ("dense", "mvue"):
            raise LayerError(
                f"NMCuda: received weight_gradient={weight_gradient!r}; it is 'dense' or 'mvue'"
            )
        self.plan = plan
        self.format = format
        self.weight_gradient: WeightGradient = weight_gradient
        decide = always_sparse if isinstance(plan, str) else plan
        self.packed = SemiWeight(format=format, decide=decide, weight_gradient=weight_gradient)

    def for_layer(self, layer: SparseLayer) -> Self:
        own = copy.copy(self)
        decide = self._decide_for(layer) if self.plan == "auto" else self.packed.decide
        own.packed = SemiWeight(
            layer.pattern,
            format=self.format,
            decide=decide,
            weight_gradient=self.weight_gradient,
        )
        return own

    def refuses(self, layer: SparseLayer) -> str | None:
        if parametrize.is_parametrized(layer):
            return "its weight is parametrized, so that it would be packed for every call"
        weight, kind = layer.weight, type(layer.weight)
        if is_sharded(weight) or kind not in PLAIN:
            return f"its weight is a {kind.__name__}, and {self.name} runs whole tensors"
        if self.format != "reference" and weight.device.type != "cuda":
            name = "nm_cuda" if self.format == "auto" else self.format
            return f"its weight is on {weight.device}, and {name} runs on CUDA"
        found = self.packed.format_on(weight.device)
        if not isinstance(found, Format):
            return found
        if layer.mask.dim() != 2:
            return f"it is a {type(layer).__name__}: on a GPU only linear layers run sparse"
        # A float32 weight runs under autocast, which is known at the call.
        dtype = torch.bfloat16 if weight.dtype == torch.float32 else weight.dtype
        reason = why_apart(layer) or why_not_packed(found, _sides(layer), layer.pattern, dtype)
        if reason is None and self.plan == "auto":
            reason = why_too_small(layer.mask.numel())
        if reason is None and layer.weighting == "soft":
            reason = "its weighting is 'soft', which changes with every weight"
        return reason

    def run(self, layer: SparseLayer, x: torch.Tensor) -> torch.Tensor:
        if not _suits(layer, x) or not self._pays(layer, x):
            return DENSE_MASKED.run(layer, x)
        weight, mask = layer.weight, layer.mask
        bias: Any = layer.bias
        if layer.stored_in_out:
            weight, mask = weight.t(), mask.t()
        x = x.to(_dtype(x))
        y: torch.Tensor = torch.ops.transposable.nm_linear(
            x,
            weight,
            mask,
            bias,
            self.packed.tag,
            layer.straight_through,
            self.weight_gradient == "mvue",
        )
        return y

    def _decide_for(self, layer: SparseLayer) -> Decide:
        if self.format == "reference":
            return always_sparse
        out, into = _sides(layer)
        return PlannedSemi(
            out,
            into,
            layer.pattern,
            bias=layer.bias is not None,
            weight_gradient=self.weight_gradient,
            format=None if self.format == "auto" else self.format,
        )

    def _pays(self, layer: SparseLayer, x: torch.Tensor) -> bool:
        """Whether any of the matmuls to come runs sparse: else the dense layer has less to do."""
        # A compiler would record the planner; its programs ask in the operators, when they run.
        if self.plan == "always" or torch.compiler.is_compiling():
            return True
        decide = self.packed.decide
        tokens, dtype = x.shape[:-1].numel(), _dtype(x)
        if isinstance(decide, DecidesByDevice):
            choice = decide.on(x.device, tokens, dtype)
        else:
            choice = decide(tokens, dtype)
        if choice.forward or not torch.is_grad_enabled():
            return choice.forward
        return choice.input_gradient or choice.weight_gradient


class NMAuto(NMCpu):
    """What a sparse layer has from the start: :class:`NMCpu`, and on a GPU :class:`NMCuda`.

    Attributes:
        gpu: what runs the layer on a GPU; None for a convolution.

    Example:
        >>> from transposable.nn import SparseLinear
        >>> type(SparseLinear(256, 256, pattern="2:4T").backend).__name__
        'NMAuto'
    """

    gpu: NMCuda | None = None

    def for_layer(self, layer: SparseLayer) -> Self:
        own = super().for_layer(layer)
        own.gpu = NMCuda().for_layer(layer) if layer.mask.dim() == 2 else None
        return own

    def run(self, layer: SparseLayer, x: torch.Tensor) -> torch.Tensor:
        # A symbolic tracer's stand-in for a tensor is asked for its type only.
        if self.gpu is not None and type(x) in PLAIN and x.is_cuda:
            if hardware_pattern(layer.pattern):
                return self.gpu.run(layer, x)
            return DENSE_MASKED.run(layer, x)
        return super().run(layer, x)


def default_backend(layer: SparseLayer) -> Backend:
    """What runs a layer that is told nothing else: its plan, unless its kind or size speak against.

    The device and dtype of a weight may change, and are looked at in every call.
    """
    return NMAuto().for_layer(layer) if default_on_cpu(layer) else DENSE_MASKED


def _dtype(x: torch.Tensor) -> torch.dtype:
    """Of the products: that of x, or of autocast."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype in _AUTOCAST:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _sides(layer: nn.Module) -> tuple[int, ...]:
    weight: Any = layer.weight
    shape = tuple(weight.shape)
    return shape[::-1] if getattr(layer, "stored_in_out", False) else shape


def _suits(layer: SparseLayer, x: torch.Tensor) -> bool:
    """Whether the operators can do what is asked of a layer at this moment."""
    if layer.weighting != "masked" or not can_be_an_operator(x):
        return False
    weight, mask, bias = layer.weight, layer.mask, layer.bias
    if type(weight) not in PLAIN or type(x) not in PLAIN or type(mask) is not torch.Tensor:
        return False
    if not weight.device == x.device == mask.device or weight.device.type not in ("cuda", "cpu"):
        return False
    if bias is not None and bias.device != x.device:
        return False
    if torch.is_autocast_enabled(x.device.type):
        fits = weight.dtype in _AUTOCAST and x.dtype in _AUTOCAST
    else:
        # What does not fit is left to torch, whose own words for it a user knows.
        fits = x.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype)
    fits = fits and mask.shape == weight.shape and mask.dim() == 2 and x.dim() > 0
    return fits and x.shape[-1] == _sides(layer)[1]
