"""compress: the sparse linear layers of a model into compressed ones, in place."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from transposable.errors import CompressionError, NoEffectWarning, PlanError, SelectionError
from transposable.nn.compressed import CompressedLinear
from transposable.nn.guard import unguard
from transposable.nn.layer import SparseLayer
from transposable.nn.selection import Names, Selected, select
from transposable.nn.semi_compressed import SemiLinear, semi_structured, why_not_semi
from transposable.nn.sharding import is_sharded
from transposable.pattern import Pattern
from transposable.sparse import Blocking, Stream, plan
from transposable.sparse.ask import why_not_here
from transposable.sparse.measure import Question
from transposable.sparse.planner import planner

_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class CompressedLayer:
    """One layer that :func:`compress` changed.

    Attributes:
        name: the first name of the layer in the model.
        shape: [out, in] of its weight.
        pattern: of its mask.
        dtype: of the values.
        bytes_before: of the dense weight, without its mask; 0 if an earlier layer shares it.
        bytes_after: of values, index and starts.
    """

    name: str
    shape: tuple[int, int]
    pattern: Pattern
    dtype: torch.dtype
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class Compression:
    """What :func:`compress` did.

    Attributes:
        layers: those that are compressed now, in the model's order.
        left: why a layer that has a weight matrix was left as it is, by name.
    """

    layers: tuple[CompressedLayer, ...]
    left: Mapping[str, str]

    @property
    def bytes_before(self) -> int:
        """Bytes of the dense weights of the compressed layers."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes of their compressed weights."""
        return sum(layer.bytes_after for layer in self.layers)


def compress(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    include: Names | None = None,
    exclude: Names = (),
    tokens: int | None = None,
) -> Compression:
    """Turn sparse linear layers into compressed ones, in place, for inference.

        y = x (S * W)^T + b   from the kept weights and a 16-bit index

    Every ``SparseLinear`` (and sparse ``Conv1D`` of transformers) keeps its identity as a module
    and becomes a :class:`CompressedLinear`: the dense weight and the mask are gone, the bias is a
    buffer. Outputs are those of the masked layer up to rounding. Everything else in the model stays
    as it is. Save the model with :func:`save_compressed`; train the sparse one that you keep.

    On a GPU layers of 2:4 (and 2:4T) in bfloat16 or float16 become ``SemiLinear``, on torch's
    semi-structured weights; what they cannot be is left, with the reason. They cannot be saved:
    save the sparse model, and compress it after loading.

    Args:
        model: any module; it may itself be a sparse layer. It runs in eval mode only afterwards.
        dtype: of the stored values, float32 or bfloat16 (on a GPU bfloat16 or float16); default
            that of each weight. Inputs keep their dtype on the CPU, and sums are of float32.
        include, exclude: names of modules as in :func:`sparsify`; default all.
        tokens: rows of a typical input, batch size times sequence length: a layer that
            :func:`transposable.sparse.plan` expects to be faster dense at that size is left.

    Returns:
        A :class:`Compression`: the layers with their bytes, and those that were left.

    Raises:
        SelectionError: if a name matches no layer, or nothing is selected.
        CompressionError: if dtype is another.
        PlanError: if tokens is no positive integer.
        Nothing is changed then.

    Warns:
        NoEffectWarning: if no layer was compressed.

    Complexity: two passes over each weight; a weight is released before the next is compressed.

    Example:
        >>> from transposable import sparsify
        >>> model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 16)).eval()
        >>> changes = sparsify(model, "4:8T", exclude="2")
        >>> done = compress(model)
        >>> [layer.name for layer in done.layers], done.bytes_after / done.bytes_before < 0.7
        (['0'], True)
        >>> done.left["2"]
        'a Linear that is not sparse: sparsify it first'
    """
    on_gpu = any(_on_gpu(parameter) for parameter in model.parameters())
    if dtype is not None and dtype not in ((*_DTYPES, torch.float16) if on_gpu else _DTYPES):
        raise CompressionError(
            f"compress: received dtype={dtype!r}; values are stored as torch.float32 or "
            "torch.bfloat16 on the CPU, as torch.bfloat16 or torch.float16 on a GPU; leave it out "
            "to keep the dtype of each weight"
        )
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise PlanError(
            f"compress: received tokens={tokens!r}; it is the number of rows of a typical input, "
            "an integer of at least 1; leave it out to compress whatever the size"
        )
    chosen: dict[str, SparseLayer] = {}
    left: dict[str, str] = {}
    for one in _selected(model, include, exclude):
        reason = _why_left(one.module, tokens, dtype)
        if reason is not None:
            left[one.name] = reason
        else:
            assert isinstance(one.module, SparseLayer)
            chosen[one.name] = one.module
    if include is None:
        left |= _others(model, {*chosen, *left})
    if not chosen:
        warnings.warn(
            f"compress: {type(model).__name__} has no layer to compress: "
            + ("; ".join(f"{name!r}: {why}" for name, why in list(left.items())[:3]) or "no weight")
            + "; nothing was changed",
            NoEffectWarning,
            stacklevel=2,
        )
    layers = []
    counted: set[int] = set()
    for name, layer in chosen.items():
        weight = layer.weight
        before = 0 if id(weight) in counted else weight.nbytes
        counted.add(id(weight))
        pattern, bias = layer.pattern, layer.bias
        if _on_gpu(weight):
            layers.append(_become_semi(name, layer, dtype, before))
            continue
        stream = stream_of(layer, dtype)
        shape = stream.rows, stream.cols
        become_compressed(layer, stream, pattern, bias)  # type: ignore[arg-type]
        del weight
        after = stream.nbytes
        layers.append(CompressedLayer(name, shape, pattern, stream.values.dtype, before, after))
    unguard(model)
    return Compression(tuple(layers), MappingProxyType(left))


def become_compressed(
    module: nn.Module, stream: Stream, pattern: Pattern, bias: torch.Tensor | None
) -> None:
    """Turn a linear module into a :class:`CompressedLinear` in place."""
    if isinstance(module, SparseLayer):
        module.become_dense()
    module._parameters.clear()
    module.__class__ = CompressedLinear
    assert isinstance(module, CompressedLinear)
    module._become_compressed(stream, pattern, bias)


def _on_gpu(weight: torch.Tensor) -> bool:
    return weight.is_cuda


def _become_semi(
    name: str, layer: SparseLayer, dtype: torch.dtype | None, before: int
) -> CompressedLayer:
    """Turn a linear module on a GPU into a :class:`SemiLinear` in place."""
    module: nn.Module = layer
    pattern, bias = layer.pattern, getattr(layer, "bias", None)
    with torch.no_grad():
        weight = layer.effective_weight().to(dtype or layer.weight.dtype)
        packed = semi_structured(weight.t() if layer.stored_in_out else weight)
        bias = None if bias is None else bias.to(packed.dtype)
    layer.become_dense()
    module._parameters.clear()
    module.__class__ = SemiLinear
    assert isinstance(module, SemiLinear)
    module._become_compressed(packed, pattern, bias)
    shape = module.out_features, module.in_features
    return CompressedLayer(name, shape, pattern, packed.dtype, before, module.nbytes)


def stream_of(layer: SparseLayer, dtype: torch.dtype | None) -> Stream:
    """The effective weight [out, in] of a sparse layer as a stream."""
    with torch.no_grad():
        weight = layer.weight if layer.weighting == "masked" else layer.effective_weight()
    weight, mask = weight.detach(), layer.mask
    if layer.stored_in_out:
        weight, mask = weight.t(), mask.t()
    stream = Stream.build(mask, Blocking.best(layer.pattern, mask.shape[1]), dtype or weight.dtype)
    stream.fill(weight)
    return stream


def _selected(model: nn.Module, include: Names | None, exclude: Names) -> list[Selected]:
    try:
        # The pattern does not matter: no layer is given one here.
        return select(model, "1:2", include, exclude, "compress")
    except SelectionError:
        if include is None and not exclude:
            return []  # said in the words of compress
        raise


def _why_left(module: nn.Module, tokens: int | None, dtype: torch.dtype | None) -> str | None:
    kind = type(module).__name__
    if not isinstance(module, SparseLayer):
        return f"a {kind} that is not sparse: sparsify it first"
    if parametrize.is_parametrized(module):
        return "its weight is parametrized: remove the parametrizations first"
    weight = module.weight
    if is_sharded(weight):
        return "its weight is sharded over processes: load the full state dict into a whole model"
    if weight.dim() != 2:
        return f"a {kind}: only linear layers have a compressed matmul"
    if module.mask.shape != weight.shape:
        return f"its mask is {tuple(module.mask.shape)} and its weight {tuple(weight.shape)}"
    if module.weighting == "dense":
        return "its mask rests (weighting 'dense')"
    out, into = weight.shape[::-1] if module.stored_in_out else weight.shape
    if _on_gpu(weight):
        kind_of = dtype or weight.dtype
        reason = why_not_semi((out, into), module.pattern, kind_of, weight.device)
        if reason is not None or tokens is None:
            return reason
        asked = plan(module, tokens=tokens, dtype=kind_of, training=False).forward
        return None if asked.sparse else f"faster dense at {tokens} tokens: {asked.reason}"
    if dtype == torch.float16:
        return "float16: on the CPU values are stored as float32 or bfloat16"
    reason = why_not_here(weight.device, weight.dtype)
    if reason is not None or tokens is None:
        return reason
    question = Question(out, into, module.pattern, tokens, weight.dtype, torch.get_num_threads())
    verdict = planner().forward(question)
    return None if verdict.sparse else f"faster dense at {tokens} tokens: {verdict.reason}"


def _others(model: nn.Module, known: set[str]) -> dict[str, str]:
    """Modules with a weight matrix of their own that are no candidates, such as embeddings."""
    found = {}
    for name, module in model.named_modules():
        weight: Any = module._parameters.get("weight")
        if isinstance(module, CompressedLinear | SemiLinear):
            found[name] = "compressed already"
        elif name not in known and weight is not None and weight.dim() >= 2:
            kind = type(module).__name__
            found[name] = f"a {kind}: only sparse linear layers are compressed"
    return found
