"""transposable prune --calibration: a text runs the model, and a method updates what is kept."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from transposable._version import __version__
from transposable.cli import prune_report as text
from transposable.cli import show

if TYPE_CHECKING:
    import torch

    from transposable.export import Choice, ReplacedTensor
    from transposable.pretrained import PretrainedReport, TextSamples
    from transposable.prune import LayerReport
    from transposable.solvers import Solver


@dataclass(frozen=True, slots=True)
class How:
    """What the options say about calibration; None where nothing was said."""

    file: Path
    method: str
    scores: str | None
    mode: str | None
    samples: int | None
    seq_len: int | None
    resume: Path | None
    device: str | None


def check_method(method: str, scores: object) -> None:
    """Raise click.UsageError if there is no such method or score."""
    from transposable.prune import METHODS, SCORES

    if method not in METHODS:
        raise click.UsageError(
            f"--method: there is no {method!r}; choose from {', '.join(METHODS)}"
        )
    if scores is not None and scores not in SCORES:
        raise click.UsageError(f"--scores: there is no {scores!r}; choose from {', '.join(SCORES)}")


def run(
    src: Path,
    pattern: str,
    out: Path | None,
    how: How,
    choice: Choice,
    solver: str,
    chosen: Solver,
    masks: Path | None,
    as_json: bool,
) -> None:
    """Load, select, prune, write and print."""
    check_method(how.method, how.scores)
    if choice.layouts or choice.groups:
        raise click.UsageError(
            "--layout and --groups: not with --calibration, where the model's own layers say how "
            "their weights are read"
        )
    from transposable import pretrained
    from transposable.cli.setup import checked_device
    from transposable.export import open_source, plan
    from transposable.pattern import Pattern
    from transposable.prune.calibration import SAMPLES

    device = checked_device(how.device)
    mode: Literal["sequential", "parallel"] = "parallel" if how.mode == "parallel" else "sequential"
    with open_source(src) as source:
        decisions = plan(source, pattern, choice)
        # What takes a second comes first, so that a mistake is found in one.
        kind = pretrained.kind_of(source)
        with _status("reading the text"):
            samples = pretrained.text_samples(
                how.file,
                pretrained.load_tokenizer(source),
                source.config,
                kind,
                samples=how.samples or SAMPLES,
                seq_len=how.seq_len,
            )
        with _status("loading the model"):
            model, notes = pretrained.load_model(source)
            binding = pretrained.bind(source, decisions, model, Pattern.parse(pattern), choice)
            with _memory_of(device):
                model.to(device)
        source.notes += notes
        if not as_json:
            text.print_selection(source, binding.decisions, pattern, solver, chosen.name)
            _print_samples(how, mode, samples)
        with show.progress("pruning", eta=True) as progress, _memory_of(device):
            report = pretrained.prune_pretrained(
                source,
                model,
                binding,
                samples,
                pattern,
                out,
                method=how.method,
                scores=how.scores,
                mode=mode,
                resume=how.resume,
                solver=chosen,
                masks=masks,
                progress=progress,
            )
    if as_json:
        show.document(_document(report, samples, how, chosen.name, src, out, masks))
    else:
        _print_report(report, out, masks)


@contextmanager
def _status(label: str) -> Iterator[None]:
    """What is being waited for, on a terminal."""
    err = show.console(sys.stderr)
    if not err.is_terminal:
        yield
        return
    with err.status(label):
        yield


@contextmanager
def _memory_of(device: torch.device) -> Iterator[None]:
    """Says what to do where a GPU has too little memory."""
    import torch

    from transposable.errors import DeviceError

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"--device: {device} has too little memory for this model and its calibration "
            f"({str(error).splitlines()[0]}); nothing is written; give fewer --samples, or leave "
            "--device out to run on the CPU"
        ) from error


def _print_samples(how: How, mode: str, samples: TextSamples) -> None:
    unit = "lines" if samples.kind == "encoder" else f"windows of {samples.seq_len} tokens"
    scores = "" if how.scores is None else f" with scores {how.scores}"
    show.console().print(
        f"method: {how.method}{scores}, {mode}, on {samples.samples:,} {unit} "
        f"({samples.tokens:,} tokens) of {how.file}",
        soft_wrap=True,
    )


def _print_report(report: PretrainedReport, out: Path | None, masks: Path | None) -> None:
    console = show.console()
    console.print()
    columns = ["tensor pruned", ">shape", ">kept*", ">error, masked", ">error, after", ">s"]
    rows = [
        [
            tensor.name,
            show.shape_text(tensor.shape),
            show.percent(tensor.retention),
            _error_text(layer.error_masked),
            _error_text(layer.error),
            f"{sum(layer.seconds):.2f}",
        ]
        for tensor, layer in report.pruned
    ]
    show.print_table(console, columns, rows)
    tensors = [tensor for tensor, _ in report.pruned]
    model = report.model
    console.print()
    console.print(text.total_text(tensors, report.retention))
    console.print(
        f"mean error of the layers' outputs: {_error_text(model.error_masked)} right after "
        f"masking, {_error_text(model.error)} after {model.method}"
    )
    console.print(f"time: {show.time_text(report.seconds)}")
    console.print(f"verified on the weights as written: {text.verified_text(tensors)}")
    console.print(f"* {text.kept_text(report.pattern)}, before any update")
    console.print("error: mean square of the change of a layer's output, relative to the output's")
    notes = [
        f"{tensor.name}: {note}"
        for tensor, layer in report.pruned
        for note in (tensor.note, layer.note)
        if note
    ]
    text.print_end(console, [*notes, *report.notes], out, masks)


def _error_text(error: float | None) -> str:
    return "-" if error is None or not math.isfinite(error) else f"{error:.3g}"


def _document(
    report: PretrainedReport,
    samples: TextSamples,
    how: How,
    solver: str,
    src: Path,
    out: Path | None,
    masks: Path | None,
) -> dict[str, Any]:
    tensors = [tensor for tensor, _ in report.pruned]
    return {
        "command": "prune",
        "version": __version__,
        "source": str(src),
        "out": None if out is None else str(out),
        "masks": None if masks is None else str(masks),
        "dry_run": out is None,
        "pattern": str(report.pattern),
        "solver": solver,
        "method": report.model.method,
        "scores": how.scores,
        "mode": report.model.mode,
        "device": how.device or "cpu",
        "calibration": {
            "file": str(how.file),
            "kind": samples.kind,
            "samples": samples.samples,
            "tokens": samples.tokens,
            "seq_len": samples.seq_len,
            "batches": len(samples.batches),
        },
        "tensors": [_tensor_document(*pair) for pair in report.pruned],
        "dense": [text.dense_document(decision) for decision in report.dense],
        "totals": {
            "tensors": len(tensors),
            "weights": sum(tensor.weights for tensor in tensors),
            "kept": sum(tensor.kept for tensor in tensors),
            "retention": report.retention,
            "error_masked": _plain(report.model.error_masked),
            "error": _plain(report.model.error),
            "violations": text.violations(tensors),
            "seconds": report.seconds,
        },
        "notes": list(report.notes),
    }


def _tensor_document(tensor: ReplacedTensor, layer: LayerReport) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "layer": layer.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        **tensor.reading.to_json(),
        "weights": tensor.weights,
        "kept": tensor.kept,
        "objective": _plain(tensor.objective),
        "unstructured": _plain(tensor.unstructured),
        "retention": _plain(tensor.retention),
        "violations": tensor.violations,
        "promised": list(tensor.promised),
        "method": layer.method,
        "violated_before": layer.violated,
        "error_masked": _plain(layer.error_masked),
        "error": _plain(layer.error),
        "samples": layer.samples,
        "seconds": sum(layer.seconds),
        "info": {key: _plain(value) for key, value in layer.info.items()},
        "note": "; ".join(note for note in (tensor.note, layer.note) if note),
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it: no infinities; what a method says in other types becomes text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    item: Callable[[], Any] | None = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", None) == 0:
        return _plain(item())  # a number of torch or numpy
    return str(value)
