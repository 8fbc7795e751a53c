"""What the demo measures; nothing here prints."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from transposable.api import find_mask, solve
from transposable.certificate import certify
from transposable.demo.encoder import MODEL, Encoder, pruned
from transposable.errors import SolverError
from transposable.export.retention import largest_sum
from transposable.layout import blocks
from transposable.mask import Mask
from transposable.pattern import Pattern
from transposable.solvers import SOLVERS
from transposable.verification import verify

PATTERNS: Final = ("2:4T", "4:8T")
BASELINES: Final = (("unstructured", "50%"), ("row_wise", "2:4"), ("row_wise", "4:8"))

# "auto" is the exact solver here; the oracles of the tests are not meant for whole networks.
_LEFT_OUT: Final = ("auto", "exhaustive", "reference")
_PROBE_ROWS: Final = 64

Weights = Mapping[str, torch.Tensor]
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One layer under the exact solver.

    ``kept`` is relative to the magnitude that unstructured 50 % keeps in this layer; ``gap``, the
    duality gap of the worst tile, and ``proved`` come from :func:`transposable.certify`, which
    shares no code with the solver.
    """

    name: str
    shape: tuple[int, ...]
    kept: float
    gap: float
    proved: bool
    milliseconds: float


@dataclass(frozen=True, slots=True)
class MethodResult:
    """One solver and pattern on the whole model.

    ``kept`` is relative to unstructured 50 % per layer; ``exact_tiles`` is the share of M x M tiles
    with exactly N kept in every row and column; ``violations`` counts groups of M with more than N
    kept, along the forward ("in") and the input-gradient ("out") contraction axis.
    """

    solver: str
    pattern: str
    kept: float
    seconds: float
    exact_tiles: float
    groups: int
    violations_in: int
    violations_out: int
    cosines: tuple[float, ...]

    @property
    def cosine(self) -> float:
        """Mean over the sentences of the cosine between dense and pruned embedding."""
        return sum(self.cosines) / len(self.cosines)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A solver that was not run on the whole model, and why."""

    solver: str
    pattern: str
    reason: str


@dataclass(frozen=True, slots=True)
class Results:
    """Everything the demo reports."""

    model: str
    layer_count: int
    weights: int
    threads: int
    sentences: tuple[str, ...]
    layers: dict[str, tuple[LayerResult, ...]]
    methods: tuple[MethodResult, ...]
    skipped: tuple[Skipped, ...]

    @property
    def ok(self) -> bool:
        """Whether every transposable mask holds both ways and every exact one is proved optimal."""
        both = all(
            method.violations_in == 0 and method.violations_out == 0
            for method in self.methods
            if Pattern.parse(method.pattern).transposable
        )
        return both and all(layer.proved for rows in self.layers.values() for layer in rows)

    def method(self, solver: str, pattern: str) -> MethodResult:
        """The result of one solver on one pattern."""
        return next(
            method
            for method in self.methods
            if (method.solver, method.pattern) == (solver, pattern)
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers, for JSON."""
        data = dataclasses.asdict(self)
        for method, row in zip(self.methods, data["methods"], strict=True):
            row["cosine"] = method.cosine
        return {**data, "ok": self.ok}


def measure(
    encoder: Encoder,
    sentences: Sequence[str],
    *,
    threads: int | None = None,
    budget: float = math.inf,
    note: Note = lambda text: None,
) -> Results:
    """Prune the encoder with every solver that is fast enough, and compare.

    Args:
        encoder: the network; its weights are the same afterwards.
        sentences: what to embed with the dense and the pruned network.
        threads: threads of the solvers; default torch.get_num_threads().
        budget: seconds a solver may take for the whole model, estimated on a slice of one layer.
        note: is told what happens next.
    """
    threads = torch.get_num_threads() if threads is None else threads
    # Torch's own operations here are many and small: a second thread gains them little on an idle
    # machine and costs them several times over on a busy one, where it spins at every barrier. The
    # native solvers get their threads by argument.
    with _one_torch_thread():
        return _measure(encoder, sentences, threads, budget, note)


def best_sums(weights: Weights) -> dict[str, float]:
    """The magnitude that unstructured 50 % keeps in each layer."""
    return {name: largest_sum(w.abs(), -(-w.numel() // 2)) for name, w in weights.items()}


def retention(weights: Weights, masks: Mapping[str, Mask], reference: Mapping[str, float]) -> float:
    """Magnitude that the masks keep, relative to that of :func:`best_sums`."""
    kept = sum(
        float(weights[name].abs()[mask.tensor].sum(dtype=torch.float64))
        for name, mask in masks.items()
    )
    return kept / sum(reference[name] for name in masks)


def _measure(
    encoder: Encoder, sentences: Sequence[str], threads: int, budget: float, note: Note
) -> Results:
    weights = {
        name: layer.weight.detach().clone() for name, layer in encoder.linear_layers().items()
    }
    reference = best_sums(weights)
    dense = encoder.embed(sentences)
    layers: dict[str, tuple[LayerResult, ...]] = {}
    methods: list[MethodResult] = []
    skipped: list[Skipped] = []

    def compare(solver: str, pattern: str) -> tuple[dict[str, Mask], dict[str, float]]:
        masks, seconds = _prune(weights, pattern, solver, threads)
        network = encoder.linear_layers()
        with pruned(network, masks):
            cosines = (encoder.embed(sentences) * dense).sum(1).tolist()
            counts = _count({name: network[name].weight.detach() for name in masks}, pattern)
        methods.append(
            MethodResult(
                solver=solver,
                pattern=pattern,
                kept=retention(weights, masks, reference),
                seconds=sum(seconds.values()),
                exact_tiles=_exact_tiles(masks, pattern),
                groups=counts[0],
                violations_in=counts[1],
                violations_out=counts[2],
                cosines=tuple(cosines),
            )
        )
        return masks, seconds

    for solver, pattern in BASELINES:
        note(f"{solver} {pattern}")
        compare(solver, pattern)
    for pattern in PATTERNS:
        note(f"exact {pattern}")
        masks, seconds = compare("exact", pattern)
        note(f"certificate of {pattern}")
        layers[pattern] = tuple(
            _layer(name, weights[name], mask, reference[name], seconds[name], threads)
            for name, mask in masks.items()
        )
        for solver in _alternatives(pattern):
            note(f"{solver} {pattern}")
            reason = _too_slow(weights, pattern, solver, threads, budget)
            if reason:
                skipped.append(Skipped(solver, pattern, reason))
            else:
                compare(solver, pattern)
    return Results(
        model=MODEL,
        layer_count=len(weights),
        weights=sum(w.numel() for w in weights.values()),
        threads=threads,
        sentences=tuple(sentences),
        layers=layers,
        methods=tuple(methods),
        skipped=tuple(skipped),
    )


def _alternatives(pattern: str) -> list[str]:
    parsed = Pattern.parse(pattern)
    return [
        name
        for name, solver in SOLVERS.items()
        if name != "exact" and name not in _LEFT_OUT and solver().accepts(parsed)
    ]


def _too_slow(
    weights: Weights, pattern: str, solver: str, threads: int, budget: float
) -> str | None:
    """Why this solver is left out, judged by its time on a slice; None if it is fast enough."""
    part = next(iter(weights.values()))[:_PROBE_ROWS]
    try:
        started = time.perf_counter()
        find_mask(part, pattern, solver=solver, threads=threads)
        seconds = time.perf_counter() - started
    except SolverError as error:
        return str(error)
    estimate = seconds * sum(w.numel() for w in weights.values()) / part.numel()
    if estimate > budget:
        return f"about {estimate:.0f} s for the whole model, the limit here is {budget:g} s"
    return None


def _prune(
    weights: Weights, pattern: str, solver: str, threads: int
) -> tuple[dict[str, Mask], dict[str, float]]:
    """The masks of all layers and the seconds each took."""
    # Threads are started and code is paged in on the first call, which belongs to no layer.
    masks, seconds = {}, {}
    find_mask(next(iter(weights.values())), pattern, solver=solver, threads=threads)
    for name, weight in weights.items():
        started = time.perf_counter()
        masks[name] = find_mask(weight, pattern, solver=solver, threads=threads)
        seconds[name] = time.perf_counter() - started
    return masks, seconds


def _layer(
    name: str,
    weight: torch.Tensor,
    mask: Mask,
    reference: float,
    seconds: float,
    threads: int,
) -> LayerResult:
    """Prove the mask that was used optimal, with the potentials of a second, certifying solve."""
    scores = weight.abs()
    potentials = solve(scores, mask.pattern, "exact", threads=threads).potentials
    if potentials is None:
        raise SolverError(
            f"demo: the exact solver returned no potentials for {name} with {mask.pattern}; the "
            "proof needs them; this is a defect of the native core, reinstall the package"
        )
    proof = certify(scores, mask, potentials)
    return LayerResult(
        name=name,
        shape=tuple(weight.shape),
        kept=retention({name: weight}, {name: mask}, {name: reference}),
        gap=proof.worst_gap,
        proved=proof.optimal,
        milliseconds=1e3 * seconds,
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Torch's own operations on one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(pruned: Weights, pattern: str) -> tuple[int, int, int]:
    """Groups, violated groups along "in" and along "out" of the weights as the network holds them.

    An unstructured pattern has no groups; it is judged as 4:8T, to show what it lacks.
    """
    parsed = Pattern.parse(pattern)
    judged = Pattern.parse("4:8T") if parsed.structure == "unstructured" else parsed
    reports = [verify(weight, judged) for weight in pruned.values()]
    ahead, back = ([report.axis(name) for report in reports] for name in ("in", "out"))
    return (
        sum(axis.groups for axis in ahead),
        sum(axis.violations for axis in ahead),
        sum(axis.violations for axis in back),
    )


def _exact_tiles(masks: Mapping[str, Mask], pattern: str) -> float:
    parsed = Pattern.parse(pattern)
    n, m = (4, 8) if parsed.structure == "unstructured" else (parsed.n, parsed.m)
    exact = tiles = 0
    for mask in masks.values():
        cut = blocks(mask.layout.matrices(mask.tensor), m)
        fits = (cut.sum(-1) == n).all(-1) & (cut.sum(-2) == n).all(-1)
        exact += int(fits.count_nonzero())
        tiles += fits.numel()
    return exact / max(tiles, 1)
