"""NMCpu: linear layers and convolutions that train on their kept weights only, on the CPU."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from transposable.errors import LayerError
from transposable.nn import bits
from transposable.nn.backends import DENSE_MASKED, Backend
from transposable.nn.sharding import is_sharded
from transposable.sparse import (
    Choice,
    Decide,
    PackedWeight,
    Planned,
    PlannedConv,
    always_sparse,
    decide_for,
    nm_conv2d,
    nm_linear,
)
from transposable.sparse.ask_conv import why_dense_conv, window_of
from transposable.sparse.images import is_channels_last
from transposable.sparse.planner import why_too_small

if TYPE_CHECKING:
    from transposable.nn.layer import SparseLayer

_DTYPES = (torch.float32, torch.bfloat16)
_DENSE = Choice(forward=False, input_gradient=False, weight_gradient=False)
PLAIN = (torch.Tensor, torch.nn.Parameter)
_MOST_KINDS = 1024


class NMCpu(Backend):
    """Forward pass and both gradients of a linear layer or Conv2d from its compressed weight.

    Numbers are those of :class:`~transposable.nn.DenseMasked` up to rounding. The weight is packed
    again when it or the mask has changed, so once per optimizer step, whatever the number of
    micro-batches. One difference is a use of the weight's memory between the passes: as for a
    dense ``nn.Linear``, a weight or mask that was written in place between forward and backward
    pass is an error.

    What the operators cannot do runs dense-masked, at the moment it is asked for: a weighting that
    is not "masked" (a dense tail, S-STE), float16 and float64 inputs, other devices, sharded or
    parametrized weights, transforms of ``torch.func``, forward-mode derivatives, and
    ``torch.export`` or tracing, whose programs then run without this package. So does the input
    gradient of a convolution with a stride.

    Args:
        plan: which of the three matmuls run sparse. "auto": those that are faster so on this
            machine, see :func:`transposable.sparse.plan`, which is measured at the first forward
            pass; where none is, the layer runs dense-masked. "always": all of them. Or a
            :data:`~transposable.sparse.Decide`.

    Raises:
        LayerError: if plan is something else.

    Attributes:
        plan: as given.
        packed: the streams of the layer. Each layer should have an object of its own, which
            :func:`~transposable.nn.use_backend` sees to: one that serves several layers packs
            anew whenever the layer changes.

    Example:
        >>> from torch import nn
        >>> from transposable.nn import sparse_layers, sparsify, use_backend
        >>> model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Conv1d(128, 128, 1))
        >>> changes = sparsify(model, "2:4T")
        >>> use_backend(sparse_layers(model), NMCpu())
        {'2': 'it is a Conv1d: the compressed matmul is for linear layers and Conv2d'}
        >>> model[0].backend.name
        'nm_cpu'
    """

    name: ClassVar[str] = "nm_cpu"

    def __init__(self, plan: Literal["auto", "always"] | Decide = "auto") -> None:
        if plan not in ("auto", "always") and not callable(plan):
            raise LayerError(
                f"NMCpu: received plan={plan!r}; it is 'auto' (what is faster here), 'always', or "
                "a function of the number of tokens and their dtype that returns a Choice"
            )
        self.plan = plan
        # Before there is a layer there is nothing to plan for.
        self.packed = PackedWeight(decide=always_sparse if isinstance(plan, str) else plan)

    def for_layer(self, layer: SparseLayer) -> Self:
        own = type(self).__new__(type(self))
        own.__dict__.update(self.__dict__)
        decide = decide_for(layer) if self.plan == "auto" else self.packed.decide
        own.packed = PackedWeight(layer.pattern, decide=decide)
        return own

    def refuses(self, layer: SparseLayer) -> str | None:
        if layer.mask.dim() != 2 and (reason := why_dense_conv(layer)):
            return reason
        if parametrize.is_parametrized(layer):
            return "its weight is parametrized, so that it would be packed for every call"
        weight = layer.weight
        if is_sharded(weight) or type(weight) not in PLAIN:
            return f"its weight is a {type(weight).__name__}, and {self.name} runs whole tensors"
        if weight.device.type != "cpu":
            return f"its weight is on {weight.device}, and {self.name} runs on the CPU"
        if weight.dtype not in _DTYPES:
            return f"its weight is {weight.dtype}, and {self.name} runs float32 and bfloat16"
        if self.plan == "auto" and (reason := why_too_small(layer.mask.numel())):
            return reason
        if layer.weighting == "soft":
            return "its weighting is 'soft', which changes with every weight"
        return None

    def run(self, layer: SparseLayer, x: torch.Tensor) -> torch.Tensor:
        # First what is asked soonest: a layer that stays dense must not become slower by it.
        if not self._pays(layer, x) or not _suits(layer, x):
            return DENSE_MASKED.run(layer, x)
        weight, mask = layer.weight, layer.mask
        bias: Any = layer.bias
        if isinstance(layer, nn.Conv2d):
            where: Any = {"padding": layer.padding, "stride": layer.stride}
            where["dilation"] = layer.dilation
            tag, through = self.packed.tag, layer.straight_through
            return nm_conv2d(x, weight, mask, bias, tag, through, **where)
        if layer.stored_in_out:
            weight, mask = weight.t(), mask.t()
        return nm_linear(x, weight, mask, bias, self.packed.tag, layer.straight_through)

    def _pays(self, layer: SparseLayer, x: torch.Tensor) -> bool:
        """Whether any of the matmuls to come runs sparse: else the dense layer has less to do."""
        # A compiler would record the planner; its programs ask in the operators, when they run.
        if self.plan == "always" or torch.compiler.is_compiling():
            return True
        # A plan has this; no isinstance, since that takes longer than all else here.
        stays_dense: set[Hashable] | None = getattr(self.packed.decide, "stays_dense", None)
        if stays_dense is None:
            return self._asked(layer, x)[0]
        kind = _kind(layer, x)
        if kind in stays_dense:
            return False
        pays, settled = self._asked(layer, x)
        if settled and not pays:
            if len(stays_dense) >= _MOST_KINDS:
                stays_dense.clear()
            stays_dense.add(kind)
        return pays

    def _asked(self, layer: SparseLayer, x: torch.Tensor) -> tuple[bool, bool]:
        """Whether anything runs sparse, and whether a call of this kind is always answered so."""
        if type(x) not in PLAIN:
            return True, False  # left to _suits
        if not x.is_cpu:
            return False, False
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        choice, settled = self._choice(layer, x, dtype)
        if choice.forward or not torch.is_grad_enabled():
            return choice.forward, settled
        pays = choice.input_gradient or (choice.weight_gradient and not layer.straight_through)
        return pays, settled

    def _choice(
        self, layer: SparseLayer, x: torch.Tensor, dtype: torch.dtype
    ) -> tuple[Choice, bool]:
        """What the decision says, and whether it is one of the plan that is known now.

        Nothing is measured while something is traced, or for what runs dense anyway.
        """
        decide = self.packed.decide
        if isinstance(layer, nn.Conv2d):
            if not _are_images(layer, x):
                return _DENSE, False
            window, more = window_of(layer)
            batch = x.shape[0] if x.dim() == 4 else 1
            height, width = x.shape[-2] + more[0], x.shape[-1] + more[1]
            if isinstance(decide, PlannedConv):
                last = (x.dim() == 4 and is_channels_last(x)) or is_channels_last(layer.weight)
                given = batch, height, width, last, dtype
                if decide.known(*given) is None and _suits(layer, x):
                    decide.of_images(*given)
                known = decide.known(*given)
                return known or _DENSE, known is not None
            down, across = window.output(height, width)
            tokens = batch * down * across
        else:
            tokens = x.shape[:-1].numel()
        if isinstance(decide, Planned):
            if decide.known(tokens, dtype) is None and _suits(layer, x):
                decide(tokens, dtype)
            known = decide.known(tokens, dtype)
            return known or _DENSE, known is not None
        return (decide(tokens, dtype) if _suits(layer, x) else _DENSE), False


def _kind(layer: SparseLayer, x: torch.Tensor) -> Hashable:
    """All that an answer of the plan depends on, by what is quick to ask."""
    autocast = torch.is_autocast_enabled("cpu")
    return (
        x.shape,
        x.stride() if x.dim() == 4 and x.layout == torch.strided else None,
        torch.get_autocast_dtype("cpu") if autocast else x.dtype,
        layer.straight_through or not torch.is_grad_enabled(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )


def default_on_cpu(layer: SparseLayer) -> bool:
    """Whether a layer is worth a plan: neither its kind nor its size speak against one."""
    if layer.mask.dim() != 2 and why_dense_conv(layer) is not None:
        return False
    return why_too_small(layer.mask.numel()) is None


def _suits(layer: SparseLayer, x: torch.Tensor) -> bool:
    """Whether the operators can do what is asked of a layer at this moment."""
    if layer.weighting != "masked" or not can_be_an_operator(x):
        return False
    weight, mask, bias = layer.weight, layer.mask, layer.bias
    if type(weight) not in PLAIN or type(x) not in PLAIN or type(mask) is not torch.Tensor:
        return False
    if not weight.device == x.device == mask.device == torch.device("cpu"):
        return False
    if torch.is_autocast_enabled("cpu"):
        target = torch.get_autocast_dtype("cpu")
        fits = target in _DTYPES and x.dtype in (*_DTYPES, torch.float16)
    else:
        fits = x.dtype == weight.dtype and (bias is None or bias.dtype == weight.dtype)
    # What does not fit is left to torch, whose own words for it a user knows.
    fits = fits and mask.shape == weight.shape
    if isinstance(layer, nn.Conv2d):
        fits = fits and why_dense_conv(layer) is None and _are_images(layer, x)
    else:
        in_features = weight.shape[0 if layer.stored_in_out else 1]
        fits = fits and mask.dim() == 2 and x.dim() > 0 and x.shape[-1] == in_features
    return fits and weight.dtype in _DTYPES and (bias is None or bias.device == x.device)


def _are_images(layer: nn.Conv2d, x: torch.Tensor) -> bool:
    """Whether a convolution can run on x, and is not for torch to refuse."""
    if x.dim() not in (3, 4) or x.shape[-3] != layer.in_channels:
        return False
    window, more = window_of(layer)
    return min(window.output(x.shape[-2] + more[0], x.shape[-1] + more[1])) > 0


def can_be_an_operator(x: torch.Tensor) -> bool:
    """Whether what happens now is left to an operator: not a transform, a tracer or an export."""
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    if bits.is_recorded(x):
        return False
    return not (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)
