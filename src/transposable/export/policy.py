"""Which tensors of a model are pruned when nobody says so: pure functions of names and shapes.

The rules, in the order in which they are tried, are those of docs/cli.md. A file knows no modules,
so everything is read from names, shapes, dtypes and, where there is one, the model's config.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

PRUNABLE_DTYPES: Final = ("F32", "F64", "F16", "BF16")
"""The dtypes whose magnitudes the solvers read."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a header says about a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]


HEAD: Final = "head or pooler"
"""Reason for the layers that end a network."""

NORM: Final = "norm"
NO_WEIGHT: Final = "no weight, by its name"
"""Reasons that only a tensor's full name overrides: a wide glob must not prune a buffer."""

_NORM: Final = re.compile(r"(^|_)(layer_?norm|norm|bn|batch_?norm|ln)(_|\d|$)|LayerNorm|[a-z]Norm")
_EMBEDDING: Final = re.compile(
    r"(^|_)(embed|embeds|embedding|embeddings|wte|wpe|shared|pos_enc|relative_attention_bias|"
    r"position_bias_table|tokens?|embed_(tokens|positions|in))$|^(tok|pos)_embed"
)
_HEAD: Final = re.compile(
    r"^(lm_head|classifier|cls|head|heads|score|embed_out|qa_outputs|pooler|prediction_head|"
    r"classification_head|logits|last_linear|pre_logits)$"
)
_CONV_HEAD: Final = re.compile(r"^(fc|linear|dense|output)$")
_NO_WEIGHT: Final = re.compile(
    r"(^|_)(A_log|scales?|scale_inv|zero_points?|inv_freq|running_(mean|var)|bias|biases|"
    r"bias_table)$"
)
_CONV1D: Final = re.compile(r"(^|\.)(c_attn|q_attn|c_fc|c_proj)\.weight$")
_GPT2_LIKE: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_EXPERTS_IN_OUT: Final = frozenset({"gpt_oss", "llama4", "llama4_text"})


def impossible(tensor: Tensor) -> str | None:
    """Why a tensor cannot be pruned at all, whatever the user asks for; None when it can be."""
    if tensor.dtype not in PRUNABLE_DTYPES:
        kind = "float" if tensor.dtype[0] in "FB" and tensor.dtype != "BOOL" else "no float"
        if tensor.dtype == "C64":
            kind = "complex"
        return f"dtype {tensor.dtype} ({kind}; pruned are {', '.join(PRUNABLE_DTYPES)})"
    if 0 in tensor.shape:
        return "empty"
    if len(tensor.shape) < 2:
        module = _parts(tensor.name)[-1] if _parts(tensor.name) else ""
        if tensor.name.endswith("bias"):
            return "bias"
        if _NORM.search(module):
            return "norm"
        return "a single number" if not tensor.shape else "1-D"
    return None


def default_reasons(tensors: Sequence[Tensor], config: dict[str, Any]) -> dict[str, str]:
    """Why the policy leaves tensors dense that could be pruned; the others are pruned.

    Args:
        tensors: all tensors of the model.
        config: the parsed config.json, or {}.

    Returns:
        Reason by name.

    Example:
        >>> tensors = [Tensor("lm_head.weight", "F32", (99, 8)), Tensor("mlp.up", "F32", (8, 8))]
        >>> default_reasons(tensors, {})
        {'lm_head.weight': 'head or pooler'}
    """
    possible = [tensor for tensor in tensors if impossible(tensor) is None]
    has_conv = any(len(tensor.shape) in (4, 5) for tensor in possible)
    has_table = any(_EMBEDDING.search(_module(tensor.name)) for tensor in possible)
    first = _first_convolution(possible)
    heads = _heads(possible, has_conv, has_table)
    routers = {tensor.name for tensor in tensors}
    vocabulary = _vocabulary(config)
    reasons: dict[str, str] = {}
    for tensor in possible:
        name, shape = tensor.name, tensor.shape
        module = _module(name)
        reason = None
        if _NO_WEIGHT.search(_last(name)):
            reason = f"{NO_WEIGHT} ({_last(name)})"
        elif _NORM.search(module):
            reason = NORM
        elif name == first:
            reason = "first convolution"
        elif len(shape) in (2, 3) and _EMBEDDING.search(module):
            reason = "embedding"
        elif name in heads:
            reason = HEAD
        elif len(shape) == 2 and shape[0] in vocabulary:
            reason = f"one row for each of the {shape[0]} words of the vocabulary"
        elif _is_router(name, module, routers):
            reason = "router of a mixture of experts"
        elif min(_matrix(tensor)) == 1:
            reason = "depthwise convolution" if len(shape) > 2 else "one row or column"
        elif len(shape) in (4, 5) and shape[1] <= 4:
            reason = f"{shape[1]} input channels (a grouped convolution? then use --groups)"
        if reason is not None:
            reasons[name] = reason
    if config.get("tie_word_embeddings"):
        for name, reason in reasons.items():
            if reason in ("embedding", HEAD) and _is_word_table(name):
                reasons[name] = f"{reason}, tied with its counterpart"
    return reasons


def is_of_head(name: str) -> bool:
    """Whether a parameter belongs to a head or pooler, whatever its shape: nothing comes after it.

    Example:
        >>> is_of_head("bert.pooler.dense.bias"), is_of_head("encoder.layer.0.output.dense.bias")
        (True, False)
    """
    parts = _parts(name)
    outside = parts[: next((i for i, p in enumerate(parts) if p.isdigit()), len(parts))]
    return any(_HEAD.match(part) for part in outside)


def default_layout(tensor: Tensor) -> str:
    """How a bare tensor is read: 2-D linear, 4-D and 5-D conv, 3-D stacked experts or conv.

    Example:
        >>> default_layout(Tensor("mlp.experts.gate_up_proj", "BF16", (8, 512, 256)))
        'stacked'
        >>> default_layout(Tensor("conv1.weight", "F32", (384, 80, 3)))
        'conv'
    """
    if len(tensor.shape) == 2:
        return "linear"
    if len(tensor.shape) in (4, 5):
        return "conv"
    if len(tensor.shape) > 5 or "expert" in tensor.name:
        return "stacked"
    # A kernel along one axis is short; a matrix of experts is not.
    return "conv" if "conv" in tensor.name or tensor.shape[2] <= 16 else "stacked"


def stored_in_out(tensors: Sequence[Tensor], config: dict[str, Any]) -> dict[str, str]:
    """The weights stored [in, out] instead of [out, in], each with how that is known.

    GPT-2's Conv1D stores its weights transposed; so do the stacked experts of some models. The
    config's model_type says so; without one, a c_attn or c_fc wider than high does.
    """
    kind = str(config.get("model_type", ""))
    gpt2_like = kind in _GPT2_LIKE
    source = f"model_type {kind!r}"
    if not kind:
        gpt2_like = any(
            re.search(r"(^|\.)(c_attn|c_fc)\.weight$", tensor.name)
            and len(tensor.shape) == 2
            and tensor.shape[1] > tensor.shape[0]
            for tensor in tensors
        )
        source = "c_attn or c_fc wider than high"
    found = {}
    for tensor in tensors:
        if gpt2_like and len(tensor.shape) == 2 and _CONV1D.search(tensor.name):
            found[tensor.name] = f"stored [in, out] ({source})"
        if kind in _EXPERTS_IN_OUT and len(tensor.shape) == 3 and "experts" in tensor.name:
            found[tensor.name] = f"stored [expert, in, out] ({source})"
    return found


def _parts(name: str) -> list[str]:
    """The path of the module that owns a parameter: without a trailing ".weight" or ".bias"."""
    parts = name.split(".")
    return parts[:-1] if parts[-1] in ("weight", "bias") and len(parts) > 1 else parts


def _module(name: str) -> str:
    return _parts(name)[-1]


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that orders layer2 before layer10."""
    pieces = re.split(r"(\d+)", name)
    return [(0, int(p)) if p.isdigit() else (1, p) for p in pieces if p]


def _matrix(tensor: Tensor) -> tuple[int, int]:
    if default_layout(tensor) == "stacked":
        return tensor.shape[-2], tensor.shape[-1]
    return tensor.shape[0], tensor.shape[1]


def _first_convolution(tensors: Sequence[Tensor]) -> str | None:
    """The convolution that reads the image: the first with 3, else 4, else 1 input channels."""
    convolutions = [tensor for tensor in tensors if len(tensor.shape) in (4, 5)]
    for channels in (3, 4, 1):
        found = [tensor.name for tensor in convolutions if tensor.shape[1] == channels]
        if found:
            return min(found, key=_natural)
    named = [tensor.name for tensor in convolutions if _module(tensor.name) == "conv_in"]
    return min(named, key=_natural) if named else None


def _heads(tensors: Sequence[Tensor], has_conv: bool, has_table: bool) -> set[str]:
    heads = set()
    under_classifier: dict[str, list[str]] = {}
    for tensor in tensors:
        parts = _parts(tensor.name)
        # Heads stand outside the numbered blocks: encoder.layer.0.output.dense is none.
        outside = parts[: next((i for i, p in enumerate(parts) if p.isdigit()), len(parts))]
        if "classifier" in outside[:-1] or ("classifier" in outside and len(outside) < len(parts)):
            if len(tensor.shape) == 2 or max(tensor.shape[2:]) == 1:
                prefix = ".".join(outside[: outside.index("classifier")])
                under_classifier.setdefault(prefix, []).append(tensor.name)
            continue
        shallow = len(outside) == len(parts)
        if any(_HEAD.match(part) for part in outside) or (
            shallow and _CONV_HEAD.match(parts[-1]) and (has_conv or has_table) and len(parts) <= 2
        ):
            heads.add(tensor.name)
    # VGG's classifier is three Linear layers; only the last one is the head.
    heads |= {max(names, key=_natural) for names in under_classifier.values()}
    return heads


def _vocabulary(config: dict[str, Any]) -> set[int]:
    size = config.get("vocab_size")
    return {size} if isinstance(size, int) and size > 1024 else set()


def _is_router(name: str, module: str, names: set[str]) -> bool:
    if module == "router":
        return True
    if module not in ("gate", "shared_expert_gate"):
        return False
    prefix = ".".join(_parts(name)[:-1])
    return any(other.startswith(f"{prefix}.experts.") for other in names)


def _is_word_table(name: str) -> bool:
    return bool(
        re.search(
            r"(^|[._])(wte|shared|embed_tokens|word_embeddings|lm_head|decoder|embed_out)\b", name
        )
    )
