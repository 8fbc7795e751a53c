"""prune_model: a trained model and some samples in, an N:M model out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from transposable.errors import CalibrationError, MethodError
from transposable.nn.selection import Names
from transposable.pattern import Pattern
from transposable.prune import batchnorm as bn
from transposable.prune.calibration import BatchToArgs, Calibration, Call, record
from transposable.prune.checkpoint import Checkpoint
from transposable.prune.driver import Driver
from transposable.prune.fingerprint import fingerprint
from transposable.prune.methods import Method, make_method
from transposable.prune.one_layer import Settings
from transposable.prune.plan import Layer, plan
from transposable.prune.progress import Done, shown
from transposable.prune.ranks import Ranks
from transposable.prune.replay import evaluating
from transposable.prune.report import PruneReport
from transposable.prune.scores import Scores
from transposable.prune.weights import Weights
from transposable.solvers import Solver, make_solver

Mode = Literal["sequential", "parallel"]
BatchNorm = Literal["match", "estimate", "keep"]


def prune_model(
    model: nn.Module,
    pattern: str | Pattern | Mapping[str, str | Pattern],
    method: str | Method = "adaprune",
    calibration: Calibration | None = None,
    *,
    include: Names | None = None,
    exclude: Names = (),
    scores: str | Scores | None = None,
    mode: Mode = "sequential",
    samples: int | None = None,
    batch_to_args: BatchToArgs | None = None,
    batchnorm: BatchNorm = "match",
    refit_bias: bool | None = None,
    keep_zeros: bool = True,
    solver: str | Solver = "auto",
    strict: bool = False,
    inplace_progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
    progress: bool | Done | None = None,
) -> PruneReport:
    """Prune a trained model in one shot, in place, with a little calibration data.

        min over W' of the pattern:  sum_s || W x_s + b - (S * W') x'_s - b' ||^2,   layer by layer

    with x the inputs of a layer in the dense model and x' in the pruned one (``mode="sequential"``)
    or x' = x (``mode="parallel"``). Modules stay what they are, with zeros in their weights;
    ``sparsify(model, pattern)`` finds the same masks again, to fine-tune under them.

    Args:
        model: any module, in any mode; it is run in evaluation mode.
        pattern: for all selected layers, or a mapping from names to patterns.
        method: "adaprune", "magnitude", "wanda", ..., or an object such as ``AdaPrune(...)``.
        calibration: a DataLoader or an iterable of batches, one batch, or a function that is given
            the model and calls it. A batch is a tensor, a tuple or list whose first element is what
            the model takes, or a dict of keyword arguments. Tensors are moved to the model's
            device. All positions count: give sequences of equal length rather than padded ones.
        include, exclude: names of layers, as in :func:`transposable.nn.sparsify`.
        scores: what the mask keeps the most of: "magnitude", "wanda", "activation", "obs", or a
            function; for methods that take any.
        mode: "sequential" prunes each layer for the inputs that it will have, "parallel" for those
            of the dense model, in fewer passes over the data.
        samples: how many to take of an iterable; default 512.
        batch_to_args: turns a batch into the model's arguments: a tuple, a dict, or one argument.
        batchnorm: "match" moves running statistics by what pruning changed on the calibration
            data; "estimate" takes them anew, from a second pass over ``calibration``: right if it
            is augmented as in training; "keep" leaves them.
        refit_bias: choose biases anew so that the mean of a layer's output stays; default: what
            the method does.
        keep_zeros: weights that are zero stay zero.
        solver: what finds the masks; default the exact one.
        strict: raise if the calibration never reaches a layer; otherwise such a layer is pruned by
            magnitude, and the report says so.
        inplace_progress: after an error, leave the layers that are done pruned.
        resume: a directory that keeps each layer once it is done: a run that was killed and is
            started again with the same arguments goes on there, with the same result.
        progress: True for a bar on stderr; or called after every layer with the share of the
            layers done and the layer's name.

    With ``torch.distributed`` initialised (torchrun), every rank calls this with the same model and
    the same calibration: the batches are split over the ranks, layers with one input (in parallel
    mode, all layers) are solved on different ranks at the same time, and all end up with the same
    model. The directory of ``resume`` is written by rank 0.

    Returns:
        A :class:`PruneReport`: errors, masks and times by layer.

    Raises:
        SelectionError, PatternError, SolverError, MethodError: if an argument is none.
        LayerError, ScoresError, DeviceError, ShardingError: if a layer cannot be pruned.
        CalibrationError: if the data is empty, the model rejects it, or it holds NaN; or if ranks
            are given different things, or another one failed.
        CheckpointError, OutputError: if ``resume`` is of another run, or cannot be written.
        The model is left as it was then, unless ``inplace_progress`` is set.

    Complexity: for each layer two passes over the data (one in parallel mode), up to that layer,
        and what the method needs; memory for a second copy of the weights and for one layer's sums.
        Where blocks are called in order, each with the output of the one before (the layers of a
        transformer, the modules of an nn.Sequential), a pass is through one block only, and the
        inputs of one block for all data are kept, of the dense and of the pruned model, on the
        model's device: 512 sequences of 2,048 tokens with 4,096 bfloat16 features take 2 x 8 GiB.
        If that runs out of a GPU's memory, passes are from the start.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> data = [torch.randn(64, 16) for _ in range(4)]
        >>> report = prune_model(model, "2:4T", calibration=data)
        >>> report.error < report.error_masked, report.samples
        (True, 256)

    Hubara et al., NeurIPS 2021 (AdaPrune).
    """
    started = time.perf_counter()
    chosen = make_method(method, scores)
    _check_choice("mode", mode, ("sequential", "parallel"))
    _check_choice("batchnorm", batchnorm, ("match", "estimate", "keep"))
    ranks = Ranks()
    layers = ranks.agree(lambda: plan(model, pattern, include, exclude))
    if calibration is None and chosen.needs_data:
        raise CalibrationError(
            f"prune_model: method {chosen.name!r} needs calibration data and received none; pass "
            "calibration=, a loader or some batches of inputs, or use method='magnitude'"
        )
    if batchnorm == "estimate" and (calibration is None or isinstance(calibration, Iterator)):
        raise CalibrationError(
            "prune_model: batchnorm='estimate' goes over the calibration a second time, and "
            f"received {'none' if calibration is None else 'an iterator, which cannot start again'}"
            "; give a loader or a list, or use batchnorm='match'"
        )
    if ranks.size > 1 and chosen.needs_samples:
        raise MethodError(
            f"prune_model: method {chosen.name!r} looks at single samples, which are not gathered "
            f"from the {ranks.size} ranks; call prune_model before init_process_group, or use a "
            "method that needs sums only, such as 'adaprune'"
        )
    settings = Settings(
        method=chosen,
        sequential=mode == "sequential",
        solver=make_solver(solver),
        keep_zeros=keep_zeros,
        refit_bias=chosen.refits_bias if refit_bias is None else refit_bias,
    )
    weights = Weights({name: layer.module for name, layer in layers.items()})
    norms = bn.batch_norms(model)
    saved = bn.saved(norms)
    with evaluating(model), shown(progress, visible=ranks.rank == 0) as done:
        calls = ranks.agree(lambda: _calls(model, calibration, samples, batch_to_args))
        checkpoint = _prepared(model, layers, calls, settings, resume, ranks)
        driver = Driver(
            model,
            layers,
            calls,
            weights,
            settings,
            done,
            strict=strict,
            ranks=ranks,
            checkpoint=checkpoint,
        )
        try:
            reports = driver.run()
            if not calls or batchnorm == "keep":
                norms = {}
            elif batchnorm == "match":
                bn.match(model, ranks.mine(calls), weights, ranks)
            else:
                again = ranks.agree(lambda: _calls(model, calibration, samples, batch_to_args))
                bn.estimate(model, ranks.mine(again), ranks)
            weights.commit()
        except BaseException:
            if not inplace_progress:
                weights.restore()
                bn.restore(norms, saved)
            else:
                weights.commit()
            raise
    taken = sum(call.samples for call in calls)
    return PruneReport(
        method=chosen.name,
        mode=mode,
        batchnorm=batchnorm,
        layers=tuple(reports),
        samples=taken,
        batches=len(calls),
        batch_norms=tuple(norms),
        seconds=time.perf_counter() - started,
        notes=(*_notes(calls, taken, samples), *driver.notes),
    )


def _calls(
    model: nn.Module,
    calibration: Calibration | None,
    samples: int | None,
    batch_to_args: BatchToArgs | None,
) -> Sequence[Call]:
    return [] if calibration is None else record(model, calibration, samples, batch_to_args)


def _prepared(
    model: nn.Module,
    layers: Mapping[str, Layer],
    calls: Sequence[Call],
    settings: Settings,
    resume: str | os.PathLike[str] | None,
    ranks: Ranks,
) -> Checkpoint | None:
    """The checkpoint on rank 0, if there is to be one; ranks that do not fit together raise."""
    if resume is None and ranks.size == 1:
        return None
    found = ranks.agree(lambda: fingerprint(model, layers, calls, settings))
    ranks.check_equal(found)

    def opened() -> Checkpoint | None:
        if resume is None or ranks.rank > 0:
            return None
        return Checkpoint(resume, found, list(layers))

    return ranks.agree(opened)


def _notes(calls: Sequence[Call], taken: int, samples: int | None) -> tuple[str, ...]:
    if calls and samples is not None and taken < samples:
        return (f"the calibration held {taken} of the {samples} samples asked for",)
    return ()


def _check_choice(option: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise MethodError(
            f"prune_model: received {option}={value!r}; it is one of {', '.join(map(repr, known))}"
        )
