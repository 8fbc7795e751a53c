"""Models on disk: safetensors in and out, streamed, checked and written atomically."""

from __future__ import annotations

from transposable.export.apply import PrunedTensor
from transposable.export.atomic import Transaction
from transposable.export.check import Checked, Inspected, inspect_model, verify_model
from transposable.export.masks import load_masks, read_masks, save_masks
from transposable.export.outputs import Outputs
from transposable.export.prune import PruneReport, plan, prune_model
from transposable.export.reader import TensorFile
from transposable.export.record import Reading
from transposable.export.replace import ReplacedTensor, Replacer
from transposable.export.selection import Choice, Decision, select
from transposable.export.source import Source, open_source
from transposable.export.writer import TensorWriter

__all__ = [
    "Checked",
    "Choice",
    "Decision",
    "Inspected",
    "Outputs",
    "PruneReport",
    "PrunedTensor",
    "Reading",
    "ReplacedTensor",
    "Replacer",
    "Source",
    "TensorFile",
    "TensorWriter",
    "Transaction",
    "inspect_model",
    "load_masks",
    "open_source",
    "plan",
    "prune_model",
    "read_masks",
    "save_masks",
    "select",
    "verify_model",
]
