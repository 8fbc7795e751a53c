"""Compressed models on disk: safetensors, checked entry by entry before anything is changed."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import nn

from transposable._version import __version__
from transposable.errors import CheckpointError, FileError, OutputError
from transposable.nn.compressed import (
    STREAM_BUFFERS,
    CompressedLinear,
    checked_stream,
    decode_header,
)
from transposable.nn.compression import CompressedLayer, Compression, become_compressed
from transposable.nn.guard import unguard
from transposable.nn.layer import SparseLayer
from transposable.nn.selection import shown
from transposable.nn.semi_compressed import SemiLinear
from transposable.pattern import Pattern
from transposable.sparse import Blocking, Stream

METADATA: Final = "transposable.compressed.format"
_FORMAT: Final = "1"


def save_compressed(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model with compressed layers as safetensors: the file is the old or the new one.

    ``safetensors.torch.load_model`` reads it into a model compressed from the same architecture,
    :func:`load_compressed` also into one that is still dense.

    Args:
        model: after :func:`compress`.
        path: of the file.

    Raises:
        CheckpointError: if the model has no compressed layer, or one that is packed for a GPU.
        OutputError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> from transposable import compress, sparsify
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> model = nn.Sequential(nn.Linear(16, 8)).eval()
        >>> _, _ = sparsify(model, "2:4T"), compress(model)
        >>> save_compressed(model, path)
        >>> other = nn.Sequential(nn.Linear(16, 8)).eval()
        >>> [layer.name for layer in load_compressed(other, path).layers]
        ['0']
        >>> torch.equal(other(torch.ones(1, 16)), model(torch.ones(1, 16)))
        True
    """
    for name, module in model.named_modules():
        if isinstance(module, SemiLinear):
            raise CheckpointError(
                f"save_compressed: layer {name!r} is packed for a GPU, in a form of torch's own "
                "that safetensors cannot hold; save the sparse model with its masks, and call "
                "compress after loading it"
            )
    if not any(isinstance(module, CompressedLinear) for module in model.modules()):
        raise CheckpointError(
            f"save_compressed: {type(model).__name__} has no compressed layer; call "
            "compress(model) first, or save it with safetensors.torch.save_model"
        )
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    metadata = {METADATA: _FORMAT, "transposable.version": __version__}
    try:
        save_model(model, str(temporary), metadata)
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"save_compressed: {target} cannot be written ({error}); what was there before is "
            "untouched; choose a directory that exists and that you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_compressed(
    model: nn.Module, path: str | os.PathLike[str], *, reblock: bool = True
) -> Compression:
    """Load a compressed model into the same architecture, dense, sparse or compressed, in place.

    The linear layers that are compressed in the file become :class:`CompressedLinear`; all other
    tensors are loaded as by ``load_state_dict``. The file may be from anywhere: all of it is
    checked before the model is changed.

    Args:
        model: with the modules and shapes of the one that was saved.
        path: of the file.
        reblock: whether to rearrange layers that were compressed on another kind of CPU for this
            one; they are right either way, and take a moment longer to load.

    Returns:
        A :class:`Compression` with the layers of the file; ``bytes_before`` are those of dense
        weights in the dtype of the values.

    Raises:
        FileError: if the file is missing, or no safetensors file.
        CheckpointError: if it does not hold this model, compressed.
        Nothing is changed then.

    Example:
        See :func:`save_compressed`.
    """
    state = _read(Path(path))
    modules = dict(model.named_modules(remove_duplicate=False))
    streams: dict[str, tuple[Stream, Pattern]] = {}
    for name in _compressed_names(state):
        streams[name] = _stream(modules, name, state)
    if not streams:
        raise CheckpointError(
            f"load_compressed: {path} holds no compressed layer; load it with "
            "safetensors.torch.load_model"
        )
    rest = _rest(model, modules, state, streams)
    meta = any(tensor.is_meta for tensor in model.state_dict().values())
    layers = []
    for name, (stream, pattern) in streams.items():
        best = Blocking.best(pattern, stream.cols)
        if reblock and best != stream.blocking:
            stream = _rearranged(stream, best)
        _convert(modules[name], stream, pattern, state.get(_join(name, "bias")))
        shape = stream.rows, stream.cols
        dense = stream.rows * stream.cols * stream.values.element_size()
        layers.append(
            CompressedLayer(name, shape, pattern, stream.values.dtype, dense, stream.nbytes)
        )
    model.load_state_dict(rest, strict=False, assign=meta)
    unguard(model)
    return Compression(tuple(layers), {})


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get(METADATA)
            if found not in (None, _FORMAT):
                raise CheckpointError(
                    f"load_compressed: {path} has format {found!r} of compressed models, and this "
                    f"release reads {_FORMAT!r}; update the package"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"load_compressed: {path} cannot be read ({error}); give a safetensors file written by "
            "save_compressed"
        ) from None


def _compressed_names(state: dict[str, torch.Tensor]) -> list[str]:
    return [
        key.removesuffix("header").removesuffix(".")
        for key in state
        if (key == "header" or key.endswith(".header"))
        and all(key.removesuffix("header") + buffer in state for buffer in STREAM_BUFFERS)
    ]


def _join(name: str, buffer: str) -> str:
    return f"{name}.{buffer}" if name else buffer


def _stream(
    modules: dict[str, nn.Module], name: str, state: dict[str, torch.Tensor]
) -> tuple[Stream, Pattern]:
    module = modules.get(name)
    sides = None if module is None else _sides(module)
    if module is None or sides is None:
        what = "no such module" if module is None else f"a {type(module).__name__} there"
        raise CheckpointError(
            f"load_compressed: the file holds a compressed layer {name!r}, and the model has "
            f"{what}; give the architecture that was compressed"
        )
    stream = checked_stream(state, _join(name, ""), sides)
    assert stream is not None  # its names are in the state
    bias, wanted = state.get(_join(name, "bias")), getattr(module, "bias", None) is not None
    if (bias is not None) != wanted or (bias is not None and bias.shape != (stream.rows,)):
        held = "none" if bias is None else tuple(bias.shape)
        raise CheckpointError(
            f"load_compressed: layer {shown(name, module)} has {'a' if wanted else 'no'} bias for "
            f"{stream.rows} outputs, and the file holds {held}; give the architecture that was "
            "compressed"
        )
    return stream, decode_header(state[_join(name, "header")])[1]


def _sides(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a module that can be compressed, else None."""
    if isinstance(module, CompressedLinear):
        return module.out_features, module.in_features
    weight: Any = module._parameters.get("weight")
    dense = module.dense_class if isinstance(module, SparseLayer) else type(module)
    if weight is None or weight.dim() != 2:
        return None
    if dense is nn.Linear:
        return tuple(weight.shape)
    # transformers is not imported for this: a model with one of its layers has imported it.
    if (dense.__module__, dense.__name__) == ("transformers.pytorch_utils", "Conv1D"):
        return tuple(weight.shape[::-1])
    return None


def _rest(
    model: nn.Module,
    modules: dict[str, nn.Module],
    state: dict[str, torch.Tensor],
    streams: dict[str, Any],
) -> dict[str, torch.Tensor]:
    """What the file holds for the other modules, which must be what they need."""
    compressed = {id(modules[name]) for name in streams}
    prefixes = tuple(
        _join(name, "") for name, module in modules.items() if id(module) in compressed
    )
    own = model.state_dict(keep_vars=True)
    wanted = {key: tensor for key, tensor in own.items() if not key.startswith(prefixes)}
    rest = {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}
    # Of tensors that share memory a file holds one.
    held = {id(tensor) for key, tensor in wanted.items() if key in rest}
    missing = [key for key, it in wanted.items() if key not in rest and id(it) not in held]
    unexpected = [key for key in rest if key not in wanted]
    if missing or unexpected:
        raise CheckpointError(
            f"load_compressed: the file lacks {_few(missing)} of {type(model).__name__}, and holds "
            f"{_few(unexpected)} that it has not; give the architecture that was compressed"
        )
    for key, tensor in rest.items():
        if tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"load_compressed: {key!r} is {tuple(wanted[key].shape)} in the model and "
                f"{tuple(tensor.shape)} in the file; give the architecture that was compressed"
            )
    return rest


def _few(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (", ".join(map(repr, keys[:3])) or "nothing") + more


def _rearranged(stream: Stream, blocking: Blocking) -> Stream:
    """The same matrix in other blocks; a kept zero stays kept."""
    ones = torch.ones_like(stream.values)
    where = Stream(stream.index, stream.starts, ones, stream.rows, stream.cols, stream.blocking)
    other = Stream.build(where.dense() != 0, blocking, stream.values.dtype)
    other.fill(stream.dense())
    return other


def _convert(
    module: nn.Module, stream: Stream, pattern: Pattern, bias: torch.Tensor | None
) -> None:
    if isinstance(module, CompressedLinear):
        module._become_compressed(stream, pattern, bias)
    else:
        become_compressed(module, stream, pattern, bias)
