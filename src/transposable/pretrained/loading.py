"""A model and its tokenizer out of a directory, with the class that its config.json names."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from transposable.errors import DependencyError, FileError
from transposable.export.policy import is_of_head
from transposable.export.source import Source
from transposable.pretrained.quiet import offline, quiet

Kind = Literal["encoder", "causal"]

_CAUSAL: Final = ("ForCausalLM", "LMHeadModel")
_SUPPORTED: Final = (
    "supported are text encoders and causal language models of transformers; prune another model "
    "in Python, with transposable.prune.prune_model"
)
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
)


def transformers_module() -> Any:
    """The module transformers.

    Raises:
        DependencyError: if it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise DependencyError(
            "prune with calibration: transformers is not installed; it provides the network and "
            "the tokenizer; run: pip install 'transposable[hf]'"
        )
    with offline():
        return importlib.import_module("transformers")


def kind_of(source: Source) -> Kind:
    """Whether a model reads a text by lines (an encoder) or as one stream (a causal model).

    Raises:
        FileError: if it is no model of transformers that reads text, with the reason.
        DependencyError: if transformers is not installed.
    """
    name, network = _network(source)
    if source.config.get("is_encoder_decoder") or getattr(network, "is_encoder_decoder", False):
        raise FileError(f"read {source.path}: {name} is an encoder-decoder model; {_SUPPORTED}")
    wanted = getattr(network, "main_input_name", "input_ids")
    if wanted != "input_ids":
        raise FileError(f"read {source.path}: {name} reads {wanted}, not text; {_SUPPORTED}")
    if "quantization_config" in source.config:
        raise FileError(
            f"read {source.path}: the weights are quantised; calibration needs the model in a "
            "float dtype; prune first and quantise the result"
        )
    return "causal" if name.endswith(_CAUSAL) else "encoder"


def load_tokenizer(source: Source) -> Any:
    """The tokenizer beside the weights.

    Raises:
        FileError: if there is none, or transformers cannot load it.
    """
    transformers = transformers_module()
    if not any((source.path / name).is_file() for name in _TOKENIZER_FILES):
        raise FileError(
            f"read {source.path}: there is no tokenizer ({', '.join(_TOKENIZER_FILES[:4])}, ...), "
            "and the calibration text has to become tokens; save it into the directory with "
            "tokenizer.save_pretrained(directory)"
        )
    with offline(), quiet(transformers):
        try:
            return transformers.AutoTokenizer.from_pretrained(source.path, local_files_only=True)
        except Exception as error:
            raise _unloadable(source.path, "tokenizer", error) from error


def load_model(source: Source) -> tuple[nn.Module, list[str]]:
    """The model in evaluation mode and float32 (float64 if its weights are), and notes.

    Raises:
        FileError: if transformers cannot load it, or the file lacks some of its weights.

    Complexity: one copy of the weights in memory.
    """
    transformers = transformers_module()
    name, network = _network(source)
    double = any(entry.dtype == "F64" for _, entry in source.tensors())
    with offline(), quiet(transformers):
        try:
            model, info = network.from_pretrained(
                source.path,
                local_files_only=True,
                use_safetensors=True,
                # Sums and products of half precision are slow on CPUs; the file keeps its dtype.
                dtype=torch.float64 if double else torch.float32,
                output_loading_info=True,
            )
        except Exception as error:
            raise _unloadable(source.path, "model", error) from error
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # keys and values of every sample would be kept
    missing = sorted(str(key) for key in info.get("missing_keys", ()))
    inner = [key for key in missing if not is_of_head(key)]
    if inner or info.get("mismatched_keys"):
        names = inner or [str(key) for key in info["mismatched_keys"]]
        raise FileError(
            f"read {source.path}: {len(names)} weights that {name} has are not in the file or have "
            f"another shape ({', '.join(names[:3])}); calibration would run on random numbers in "
            "their place; name the class that the file was saved from in config.json"
        )
    notes = []
    if missing:
        notes.append(
            f"the file holds no {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}: the "
            f"head of {name} has random weights, which changes nothing for the layers before it"
        )
    module: nn.Module = model.eval()
    return module, notes


def _network(source: Source) -> tuple[str, Any]:
    """The class that config.json names, and its name."""
    transformers = transformers_module()
    names = source.config.get("architectures")
    if not source.is_directory or not source.config:
        raise FileError(
            f"read {source.path}: calibration runs the model, which takes a directory with "
            f"config.json, weights and tokenizer; {_SUPPORTED}"
        )
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise FileError(
            f"read {source.path / 'config.json'}: it names no architecture, so the class of the "
            'model is not known; add for example "architectures": ["BertModel"]'
        )
    network = getattr(transformers, names[0], None)
    if not isinstance(network, type) or not issubclass(network, nn.Module):
        raise FileError(
            f"read {source.path / 'config.json'}: transformers {transformers.__version__} has no "
            f"model {names[0]!r} (code that comes with a model is not run); {_SUPPORTED}"
        )
    return names[0], network


def _unloadable(path: Path, what: str, error: Exception) -> FileError:
    reason = " ".join(str(error).split())[:300]
    return FileError(
        f"read {path}: transformers cannot load the {what} ({type(error).__name__}: {reason}); "
        "check that it loads with from_pretrained"
    )
