"""A text file as calibration samples: batches of token sequences of equal length."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch

from transposable.errors import CalibrationError, FileError
from transposable.pretrained.loading import Kind
from transposable.prune.calibration import SAMPLES

SEQ_LEN: Final = 256
"""Tokens of a sample, where the model takes as many."""

_BATCH_TOKENS: Final = 4096
_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class TextSamples:
    """Calibration samples out of a text.

    Attributes:
        batches: keyword arguments of the model; all sequences of a batch are equally long, since
            padding would count as data.
        kind: one sample for each line ("encoder"), or windows of the whole text ("causal").
        samples, tokens: how many.
        seq_len: the longest that a sample may be.
        notes: what the user should know.
    """

    batches: tuple[dict[str, torch.Tensor], ...]
    kind: Kind
    samples: int
    tokens: int
    seq_len: int
    notes: tuple[str, ...]


def text_samples(
    path: str | os.PathLike[str],
    tokenizer: Any,
    config: Mapping[str, Any],
    kind: Kind,
    *,
    samples: int = SAMPLES,
    seq_len: int | None = None,
) -> TextSamples:
    """The first samples of a text file; of an encoder its lines, of a causal model windows.

    Lines are cut off after ``seq_len`` tokens, special ones included; empty lines are no samples.
    Windows of ``seq_len`` tokens follow one another through the text; where the tokenizer starts a
    text with a special token, each window has it.

    Args:
        path: UTF-8 text.
        tokenizer: of transformers.
        config: the parsed config.json.
        kind: of the model.
        samples: how many at most.
        seq_len: default 256, or what the model takes.

    Raises:
        FileError: if the file cannot be read or is not UTF-8, or the tokenizer is another model's.
        CalibrationError: if there is nothing in it, or samples would be longer than the model
            takes.

    Complexity: reads as much of the file as the samples need.
    """
    length = _length(tokenizer, config, seq_len)
    texts = _texts(Path(path))
    if kind == "encoder":
        found = list(islice(_lines(texts, tokenizer, length), samples))
    else:
        found = list(islice(_windows(texts, tokenizer, length), samples))
    if not found:
        raise CalibrationError(
            f"calibration: {path} holds no text (or none that the tokenizer knows); give a UTF-8 "
            "file, for encoders with one sample on each line"
        )
    _check_vocabulary(path, found, config)
    notes = []
    if len(found) < samples:
        notes.append(
            f"{path} holds {len(found)} of the {samples} samples asked for; more would describe "
            "the inputs better"
        )
    return TextSamples(
        tuple(_batches(found)), kind, len(found), sum(map(len, found)), length, tuple(notes)
    )


def _length(tokenizer: Any, config: Mapping[str, Any], asked: int | None) -> int:
    limits = [config.get("max_position_embeddings"), config.get("n_positions")]
    limits.append(getattr(tokenizer, "model_max_length", None))
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    most = min(known, default=asked or SEQ_LEN)
    if asked is None:
        return min(SEQ_LEN, most)
    if asked > most:
        raise CalibrationError(
            f"calibration: received samples of {asked} tokens (--seq-len), and the model takes at "
            f"most {most}; give --seq-len {most} or less"
        )
    return asked


def _texts(path: Path) -> Iterator[str]:
    """The lines of a file, with their ends."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise FileError(
            f"read {path}: not UTF-8 ({error.reason} near byte {error.start} of a part of it); "
            "calibration text is plain UTF-8; convert it, for example with iconv"
        ) from error
    except OSError as error:
        raise FileError(
            f"read {path}: {error.strerror or error}; --calibration takes a text file that this "
            "user can read"
        ) from error


def _lines(texts: Iterator[str], tokenizer: Any, length: int) -> Iterator[list[int]]:
    for line in texts:
        text = line.strip()
        if text:
            ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
            if ids:
                yield list(ids)


def _windows(texts: Iterator[str], tokenizer: Any, length: int) -> Iterator[list[int]]:
    start = _start(tokenizer, length)
    body = length - len(start)
    held: list[int] = []
    for block in _blocks(texts):
        # The tokenizer would warn that a block is longer than the model takes; it is cut below.
        held += tokenizer(block, add_special_tokens=False, verbose=False)["input_ids"]
        while len(held) >= body:
            yield start + held[:body]
            held = held[body:]
    if held:
        yield start + held


def _blocks(texts: Iterator[str]) -> Iterator[str]:
    """Whole lines, many at a time; a text without a letter is none."""
    block, size = [], 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK:
            yield "".join(block)
            block, size = [], 0
    if "".join(block).strip():
        yield "".join(block)


def _start(tokenizer: Any, length: int) -> list[int]:
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None or length < 2:
        return []
    ids = tokenizer("a")["input_ids"]
    return [bos] if ids and ids[0] == bos else []


def _check_vocabulary(path: Any, found: list[list[int]], config: Mapping[str, Any]) -> None:
    words = config.get("vocab_size")
    largest = max(max(ids) for ids in found)
    if isinstance(words, int) and largest >= words:
        raise FileError(
            f"calibration: the tokenizer turns {path} into token {largest}, and the model has "
            f"{words}; the tokenizer belongs to another model; put the right one beside the weights"
        )


def _batches(found: list[list[int]]) -> Iterator[dict[str, torch.Tensor]]:
    by_length: dict[int, list[list[int]]] = {}
    for ids in found:
        by_length.setdefault(len(ids), []).append(ids)
    for length, alike in by_length.items():
        size = max(1, _BATCH_TOKENS // length)
        for first in range(0, len(alike), size):
            batch = torch.tensor(alike[first : first + size])
            yield {"input_ids": batch, "attention_mask": torch.ones_like(batch)}
