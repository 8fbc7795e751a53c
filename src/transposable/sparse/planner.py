"""Which back end runs a layer, and by how much it is faster: decided by measurement."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

import torch

from transposable import _core
from transposable.sparse.cache import Entry, PlanCache
from transposable.sparse.choice import Choice
from transposable.sparse.measure import DIRECTIONS, Part, Question, Timing, measure
from transposable.sparse.measure_conv import ConvQuestion, measure_conv
from transposable.sparse.semi.measure import SemiQuestion, measure_semi

BackendName = Literal["nm_cpu", "cusparselt", "cutlass", "reference", "dense_masked"]

LEAST_RATIO: Final = 1.05
"""The median of the measured ratios above which the sparse matmul runs."""

LEAST_LOW: Final = 1.0
"""What the lower quartile must exceed: a gain that is sometimes a loss is none."""

OPERATOR: Final = 2e-4
"""Seconds that a dense product costs more inside of an operator than in the dense layer: 0.05 to
0.1 ms of a linear layer, 0.15 to 0.2 of a convolution, on a core of 2 to 3 GHz."""

NOT_TRANSPOSABLE: Final = "the pattern is not transposable: W^T has no packed form"
DENSE_GRADIENT: Final = "dense by choice: only its 2:4 estimate (mvue) would run sparse"
STRIDED: Final = "the input gradient of a convolution with a stride is dense"

FEWEST_TOKENS: Final = 16
SMALLEST_WEIGHT: Final = 128 * 128
AnyQuestion = Question | ConvQuestion | SemiQuestion
Measure = Callable[[AnyQuestion, Collection[Part]], Mapping[Part, Timing]]


def measure_any(question: AnyQuestion, parts: Collection[Part]) -> Mapping[Part, Timing]:
    """Time parts of a layer, of whatever kind it is."""
    if isinstance(question, ConvQuestion):
        return measure_conv(question, parts)
    if isinstance(question, SemiQuestion):
        return measure_semi(question, parts)
    return measure(question, parts)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What runs one direction of a layer.

    Attributes:
        backend: "nm_cpu" on a CPU, "cusparselt" or "cutlass" on a GPU, or "dense_masked".
        ratio: time of dense / time of sparse where that was measured.
        reason: why, in words.

    Example:
        >>> Verdict("dense_masked", None, "16 x 16 is small").sparse
        False
    """

    backend: BackendName
    ratio: float | None
    reason: str

    @property
    def sparse(self) -> bool:
        """Whether the compressed matmul runs."""
        return self.backend != "dense_masked"


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What runs a layer: a :class:`Verdict` for each direction."""

    forward: Verdict
    input_gradient: Verdict
    weight_gradient: Verdict

    @property
    def choice(self) -> Choice:
        """The same as the operators ask for it."""
        return Choice(self.forward.sparse, self.input_gradient.sparse, self.weight_gradient.sparse)

    @classmethod
    def dense(cls, reason: str) -> Verdicts:
        """All directions dense-masked for one reason."""
        verdict = Verdict("dense_masked", None, reason)
        return cls(verdict, verdict, verdict)


class Planner:
    """Answers from memory, else from the cache on disk, else from a measurement.

    Args:
        cache: of measurements; default that of this machine.
        measurer: what measures.
    """

    def __init__(self, cache: PlanCache | None = None, measurer: Measure = measure_any) -> None:
        self._cache = PlanCache() if cache is None else cache
        self._measure = measurer
        self._known: dict[tuple[AnyQuestion, tuple[Part, ...]], Verdicts] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def verdicts(
        self, question: AnyQuestion, *, training: bool, may_measure: bool = True
    ) -> Verdicts:
        """What runs a layer, forward and backward.

        Args:
            question: its tokens, or its batch, may be any number.
            training: whether the weight changes before each call, see :func:`plan`.
            may_measure: whether there is time for it, if it has not been measured yet.

        Complexity: a dictionary lookup once it is known.
        """
        return self._answer(
            question,
            _parts(question, training),
            functools.partial(judge, training=training, backend=backend_of(question)),
            may_measure,
        )

    def forward(self, question: AnyQuestion, *, may_measure: bool = True) -> Verdict:
        """What runs the forward pass of a layer whose weight stays; measures nothing else."""
        judged = functools.partial(_judge_forward, backend=backend_of(question))
        return self._answer(question, ("forward",), judged, may_measure).forward

    def _answer(
        self,
        question: AnyQuestion,
        parts: tuple[Part, ...],
        judged: Callable[[Mapping[Part, Timing]], Verdicts],
        may_measure: bool,
    ) -> Verdicts:
        if reason := why_too_small(question.weights, question.tokens, question.unit):
            return Verdicts.dense(reason)
        if torch.are_deterministic_algorithms_enabled():
            return fixed_rule(question)
        rounded = question.rounded()
        known = self._known.get((rounded, parts))
        if known is None:
            if not may_measure:
                return Verdicts.dense("not measured yet, which is done in a forward pass only")
            known = self._known[rounded, parts] = judged(self._timings(rounded, parts))
        return known

    def _timings(self, question: AnyQuestion, parts: Iterable[Part]) -> dict[Part, Timing]:
        if self._process != os.getpid():  # a fork may have copied a lock that nobody will release
            self._process, self._lock = os.getpid(), threading.Lock()
        with self._lock:  # two measurements at once would measure one another
            timings: dict[Part, Timing] = {}
            for part in parts:
                if (stored := _from_entry(self._cache.get(question.key(part)))) is not None:
                    timings[part] = stored
            missing = [part for part in parts if part not in timings]
            if missing:
                measured = self._measure(question, missing)
                self._cache.put({question.key(part): _entry(measured[part]) for part in missing})
                timings.update(measured)
        return timings


@functools.cache
def planner() -> Planner:
    """The planner of this process."""
    return Planner()


def backend_of(question: AnyQuestion) -> BackendName:
    """What runs the sparse matmuls of a question."""
    if isinstance(question, SemiQuestion):
        return cast(BackendName, question.backend)
    return "nm_cpu"


def judge(
    timings: Mapping[Part, Timing], *, training: bool, backend: BackendName = "nm_cpu"
) -> Verdicts:
    """The back ends that timings speak for.

    Without an input gradient among them that is dense: the one of a strided convolution, and on a
    GPU that of a pattern that is not transposable. On a GPU so is the weight gradient, but for an
    estimate that was asked for.

    In training both sides pay for a weight that has changed: dense masks it, and masks its
    gradient; sparse packs its values again, for each of the two streams that is used. There the
    layer as a whole must win as well: leaving the dense layer has its price (operators of its own,
    two gradients that no longer share their work), which a small gain in one direction cannot pay.

    Example:
        >>> fast, slow = Timing(2.0, 1.0, 2.0, 1.9), Timing(1.0, 1.0, 1.0, 0.9)
        >>> chosen = judge(
        ...     {"forward": fast, "input_gradient": fast, "weight_gradient": slow}, training=False
        ... )
        >>> chosen.forward.backend, chosen.weight_gradient.backend
        ('nm_cpu', 'dense_masked')
    """
    masking = pack = pack_transposed = 0.0
    if training:
        masking, pack = timings["refresh"].dense, timings["refresh"].sparse
    if "input_gradient" in timings:
        if training:
            pack_transposed = timings["refresh_transposed"].sparse
        input_gradient = _judge(timings["input_gradient"], 0.0, pack_transposed, backend)
    else:
        reason = STRIDED if backend == "nm_cpu" else NOT_TRANSPOSABLE
        input_gradient = Verdict("dense_masked", None, reason)
    # One dense product is enough to need the masked weight.
    forward_mask = masking if input_gradient.sparse else 0.0
    forward = _judge(timings["forward"], forward_mask, pack, backend)
    if "weight_gradient" not in timings:
        return Verdicts(forward, input_gradient, Verdict("dense_masked", None, DENSE_GRADIENT))
    # Dense in both, the operators mask the weight once for each, and the dense layer once in all.
    again = 0.0 if forward.sparse or input_gradient.sparse else masking
    weight_gradient = _judge(timings["weight_gradient"], masking, again, backend)
    verdicts = Verdicts(forward, input_gradient, weight_gradient)
    if training and verdicts.choice.any:
        gain = _whole(verdicts, timings)
        if gain <= LEAST_RATIO:
            return _all_dense(
                verdicts, f"the whole layer would have {gain:.2f} x the speed of dense, too little"
            )
    return verdicts


def _whole(verdicts: Verdicts, timings: Mapping[Part, Timing]) -> float:
    """Time of a dense step of the layer over that of the mixture, both with a changed weight."""
    masking = timings["refresh"].dense
    dense, mixed = masking, 0.0
    for direction, refresh in (
        ("forward", "refresh"),
        ("input_gradient", "refresh_transposed"),
        ("weight_gradient", None),
    ):
        if direction not in timings:
            continue
        timing: Timing = timings[direction]  # type: ignore[index]
        dense += timing.dense + (masking if refresh is None else 0.0)
        if getattr(verdicts, direction).sparse:
            mixed += timing.sparse + (timings[refresh].sparse if refresh else 0.0)  # type: ignore[index]
        else:
            mixed += timing.dense + masking + OPERATOR
    return dense / mixed


def _all_dense(verdicts: Verdicts, why: str) -> Verdicts:
    """The same ratios, and everything dense."""
    return Verdicts(
        *(
            Verdict("dense_masked", one.ratio, why if one.sparse else one.reason)
            for one in (verdicts.forward, verdicts.input_gradient, verdicts.weight_gradient)
        )
    )


def _judge_forward(timings: Mapping[Part, Timing], backend: BackendName) -> Verdicts:
    forward = _judge(timings["forward"], 0.0, 0.0, backend)
    return Verdicts(
        forward, *[Verdict("dense_masked", None, "only the forward pass is planned")] * 2
    )


def _judge(
    timing: Timing, dense_extra: float, sparse_extra: float, backend: BackendName
) -> Verdict:
    ratio, low = timing.ratio, timing.low
    if dense_extra or sparse_extra:
        dense, sparse = timing.dense + dense_extra, timing.sparse + sparse_extra
        ratio, low = dense / sparse, dense / sparse * low / ratio
    if ratio <= LEAST_RATIO:
        reason = f"measured {ratio:.2f} x the speed of dense, less than {LEAST_RATIO:.2f}"
    elif low <= LEAST_LOW:
        reason = f"measured {ratio:.2f} x the speed of dense, but {low:.2f} in the lower quartile"
    else:
        return Verdict(backend, ratio, f"measured {ratio:.2f} x the speed of dense")
    return Verdict("dense_masked", ratio, reason)


def fixed_rule(question: AnyQuestion) -> Verdicts:
    """What runs a matmul where nothing may depend on a clock.

    With ``torch.use_deterministic_algorithms(True)`` a run must not compute something else because
    the machine was busy when it was timed. Then the compressed matmul runs where it wins by a wide
    margin: AVX2 or AVX-512, float32, N:M with at most half of the weights kept, sides of 256 and
    more, 256 tokens and more; in the weight gradient four times as many if more than a quarter of
    the weights is kept; and the gradients only if the pattern is transposable. Of a convolution the
    sides are its channels, in and out, and the tokens the pixels of its output; with several taps
    and more than a quarter kept its weight gradient is dense. On a GPU everything is dense: the
    algorithms of its libraries are chosen by the clock.

    Example:
        >>> from transposable import Pattern
        >>> question = Question(64, 64, Pattern(2, 4, "transposable"), 512, torch.float32, 1)
        >>> fixed_rule(question).forward.reason
        'fixed rule, since torch is to be deterministic: a side of less than 256'
    """
    rule = "fixed rule, since torch is to be deterministic"
    if isinstance(question, SemiQuestion):
        return Verdicts.dense(f"{rule}: dense on a GPU")
    pattern = question.pattern
    problem = None
    if _core.isa() not in ("avx512", "avx2"):
        problem = "neither AVX2 nor AVX-512"
    elif question.dtype != torch.float32:
        problem = "not float32"
    elif pattern.structure == "unstructured" or pattern.density > 0.5:
        problem = f"{pattern} is not N:M with at most half kept"
    elif min(question.sides) < 256:
        problem = "a side of less than 256"
    elif question.tokens < 256:
        problem = f"less than 256 {question.unit}"
    if problem is not None:
        return Verdicts.dense(f"{rule}: {problem}")
    sparse = Verdict("nm_cpu", None, rule)
    gradient = weight_gradient = sparse
    if not pattern.transposable:
        gradient = Verdict("dense_masked", None, f"{rule}: {pattern} is not transposable")
        weight_gradient = gradient
    elif pattern.density > 0.25 and question.tokens < 1024:
        weight_gradient = Verdict("dense_masked", None, f"{rule}: less than 1024 {question.unit}")
    if isinstance(question, ConvQuestion):
        if question.window.stride != (1, 1):
            gradient = Verdict("dense_masked", None, STRIDED)
        if weight_gradient.sparse and pattern.density > 0.25 and question.window.taps > 1:
            weight_gradient = Verdict("dense_masked", None, f"{rule}: a kernel of several taps")
    return Verdicts(sparse, gradient, weight_gradient)


def why_too_small(weights: int, tokens: int | None = None, unit: str = "tokens") -> str | None:
    """Why a matmul this small is dense whatever the machine, or None if it is not that small.

    Example:
        >>> why_too_small(1024)
        'it has 1,024 weights, less than 16,384'
    """
    if weights < SMALLEST_WEIGHT:
        return f"it has {weights:,} weights, less than {SMALLEST_WEIGHT:,}"
    if tokens is not None and tokens < FEWEST_TOKENS:
        return f"{tokens} {unit} are less than {FEWEST_TOKENS}"
    return None


def _parts(question: AnyQuestion, training: bool) -> tuple[Part, ...]:
    parts: tuple[Part, ...] = DIRECTIONS
    if isinstance(question, SemiQuestion):
        both = question.pattern.transposable
        parts = ("forward", "input_gradient") if both else ("forward",)
        if question.weight_gradient == "mvue":
            parts += ("weight_gradient",)
        if training:
            parts += ("refresh", "refresh_transposed") if both else ("refresh",)
        return parts
    if training:
        parts += ("refresh", "refresh_transposed")
    if isinstance(question, ConvQuestion) and question.window.stride != (1, 1):
        return tuple(part for part in parts if part not in ("input_gradient", "refresh_transposed"))
    return parts


def _entry(timing: Timing) -> Entry:
    return {
        "dense": timing.dense,
        "sparse": timing.sparse,
        "ratio": timing.ratio,
        "low": timing.low,
    }


def _from_entry(entry: Entry | None) -> Timing | None:
    """The timing that an entry holds; None if it does not hold one."""
    if entry is None or entry.keys() != {"dense", "sparse", "ratio", "low"}:
        return None
    timing = Timing(**entry)
    return timing if min(timing.sparse, timing.ratio) > 0 else None
