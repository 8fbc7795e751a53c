"""Models of transformers on disk, pruned with a text to calibrate on and written like the rest."""

from __future__ import annotations

from transposable.pretrained.binding import Binding, bind
from transposable.pretrained.loading import Kind, kind_of, load_model, load_tokenizer
from transposable.pretrained.prune import PretrainedReport, prune_pretrained
from transposable.pretrained.quiet import offline, quiet
from transposable.pretrained.text import SEQ_LEN, TextSamples, text_samples

__all__ = [
    "SEQ_LEN",
    "Binding",
    "Kind",
    "PretrainedReport",
    "TextSamples",
    "bind",
    "kind_of",
    "load_model",
    "load_tokenizer",
    "offline",
    "prune_pretrained",
    "quiet",
    "text_samples",
]
