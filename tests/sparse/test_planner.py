"""Which back end is chosen: with clocks and measurements that the tests make up."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.counted_calls import counted_calls
from transposable import _core, sparsify
from transposable.errors import PatternError, PlanCacheWarning, PlanError
from transposable.nn import DENSE_MASKED, NMCpu, SparseConv2d, SparseLinear, packed_backend
from transposable.pattern import Pattern
from transposable.sparse import Choice, Verdict, ask, ask_conv, decide_for, plan
from transposable.sparse.cache import PlanCache
from transposable.sparse.measure import (
    DIRECTIONS,
    MAX_WEIGHTS,
    MAX_WORK,
    Part,
    Question,
    Timing,
    compare,
    measure,
    sliced,
)
from transposable.sparse.planner import Planner, Verdicts, fixed_rule
from transposable.sparse.semi import probe

PATTERN = Pattern.parse("4:8T")
WIN, LOSS = Timing(2.0, 1.0, 2.0, 1.9), Timing(1.0, 2.0, 0.5, 0.4)
FREE = Timing(0.0, 0.0, 1.0, 1.0)


def question(tokens: int = 256, rows: int = 256, cols: int = 512, **changes: Any) -> Question:
    whole = {"pattern": PATTERN, "dtype": torch.float32, "threads": 1, **changes}
    return Question(rows, cols, tokens=tokens, **whole)


class Measurer:
    """Answers with what it was told, and counts."""

    def __init__(self, **timings: Timing) -> None:
        self.timings = timings
        self.asked: list[tuple[Question, tuple[Part, ...]]] = []

    def __call__(self, asked: Question, parts: Collection[Part]) -> dict[Part, Timing]:
        self.asked.append((asked, tuple(parts)))
        return {part: self.timings.get(part, WIN) for part in parts}


@pytest.fixture
def measured() -> Iterator[None]:
    """Decisions by measurement, although the suite is deterministic."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def measurer() -> Measurer:
    return Measurer(refresh=FREE, refresh_transposed=FREE)


@pytest.fixture
def planner(
    tmp_path: Path, measured: None, measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> Planner:
    """What plan() and the layers ask."""
    made = Planner(PlanCache(tmp_path), measurer)
    monkeypatch.setattr(ask, "planner", lambda: made)
    return made


# ---- timing ------------------------------------------------------------------------------------


class Clock:
    """A clock that two calls move forward by what they are told to take."""

    def __init__(self, dense: Callable[[int], float], sparse: Callable[[int], float]) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.takes = {"dense": dense, "sparse": sparse}

    def run(self, name: str) -> None:
        self.now += self.takes[name](self.calls.count(name))
        self.calls.append(name)

    def compare(self, seconds: float) -> Timing:
        return compare(
            lambda: self.run("dense"),
            lambda: self.run("sparse"),
            clock=lambda: self.now,
            seconds=seconds,
        )


def test_pairs_are_timed_in_turns_after_a_warm_up() -> None:
    clock = Clock(lambda n: 3.0 if n else 1000.0, lambda n: 2.0 if n else 1000.0)
    assert clock.compare(0.0) == Timing(3.0, 2.0, 1.5, 1.5)
    # Warm-up, how often to repeat, 5 pairs of which every other starts with sparse.
    pairs = [["dense", "sparse"], ["sparse", "dense"]]
    expected = [*pairs[0], *pairs[0], *(name for n in range(5) for name in pairs[n % 2])]
    assert clock.calls == expected


def test_the_time_is_bounded_and_used() -> None:
    clock = Clock(lambda n: 0.01, lambda n: 0.01)
    clock.compare(0.2)
    assert 0.2 <= clock.now <= 0.24
    clock = Clock(lambda n: 0.01, lambda n: 0.01)
    clock.compare(100.0)
    assert clock.now < 1.0


def test_a_disturbed_sample_changes_no_median() -> None:
    clock = Clock(lambda n: 3.0, lambda n: 200.0 if n == 4 else 2.0)
    timing = clock.compare(0.0)
    assert (timing.dense, timing.sparse, timing.ratio) == (3.0, 2.0, 1.5)
    assert timing.low < 1.5


def test_short_calls_are_repeated() -> None:
    clock = Clock(lambda n: 2e-5, lambda n: 1e-5)
    timing = clock.compare(0.0)
    assert timing.ratio == pytest.approx(2.0)
    assert len(clock.calls) == 4 + 2 * 5 * 50


def test_a_clock_that_stands_still_divides_by_no_zero() -> None:
    assert Clock(lambda n: 0.0, lambda n: 0.0).compare(0.0).ratio == 0.0


@pytest.mark.parametrize("part", ["forward", "input_gradient", "weight_gradient", "refresh"])
@pytest.mark.parametrize("tokens", [1, 16, 64, 1024, 100_000])
@pytest.mark.parametrize("sides", [(128, 128), (4096, 4096), (64, 131072), (131072, 64)])
@pytest.mark.parametrize("threads", [1, 8])
def test_slices_are_bounded(part: Part, tokens: int, sides: Any, threads: int) -> None:
    whole = question(tokens, *sides, threads=threads)
    rows, cols, few = sliced(whole, part)
    assert (0, 0) < (rows, cols) <= sides
    assert rows <= sides[0]
    assert cols <= sides[1]
    # 64 lines of output are the least, however wide they are.
    slack = max(1, 64 * max(sides) / MAX_WEIGHTS)
    assert rows * cols <= MAX_WEIGHTS * threads * slack
    if part != "refresh":
        assert min(tokens, 256) <= few <= tokens
        assert rows * cols * few <= MAX_WORK * threads * max(
            slack, 64 * max(sides) * 256 / MAX_WORK
        )
        kept = (cols, sides[1]) if part != "input_gradient" else (rows, sides[0])
        assert kept[0] == kept[1]  # the sums are as long as in the whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_disturbs_nothing(measured: None, dtype: torch.dtype) -> None:
    parts: tuple[Part, ...] = (
        "forward",
        "input_gradient",
        "weight_gradient",
        "refresh",
        "refresh_transposed",
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = measure(question(32, 72, 136, dtype=dtype, threads=2), parts)
    assert set(found) == set(parts)
    assert all(min(it.dense, it.sparse, it.ratio, it.low) > 0 for it in found.values())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 1
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("pattern", ["2:4", "1:16T", "4:8S", "3:5T", "33%"])
def test_any_pattern_can_be_measured(measured: None, pattern: str) -> None:
    whole = question(16, 130, 70, pattern=Pattern.parse(pattern))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (timing,) = measure(whole, ["forward"]).values()
    assert timing.ratio > 0


# ---- decisions ---------------------------------------------------------------------------------


def test_a_question_is_measured_once(planner: Planner, measurer: Measurer, tmp_path: Path) -> None:
    for tokens in (256, 300, 511):
        assert planner.verdicts(question(tokens), training=False).forward.sparse
    assert [asked.tokens for asked, _ in measurer.asked] == [256]
    again = Planner(PlanCache(tmp_path), Measurer())
    assert again.verdicts(question(400), training=False) == planner.verdicts(
        question(400), training=False
    )
    assert again._measure.asked == []


def test_only_what_is_missing_is_measured(planner: Planner, measurer: Measurer) -> None:
    assert planner.forward(question()).sparse
    planner.verdicts(question(), training=False)
    planner.verdicts(question(), training=True)
    assert [parts for _, parts in measurer.asked] == [
        ("forward",),
        ("input_gradient", "weight_gradient"),
        ("refresh", "refresh_transposed"),
    ]


@pytest.mark.parametrize(
    ("tokens", "rounded"),
    [(16, 16), (17, 16), (31, 16), (32, 32), (1023, 512), (2048, 2048), (10**9, 2048)],
)
def test_tokens_are_rounded_down(
    planner: Planner, measurer: Measurer, tokens: int, rounded: int
) -> None:
    planner.forward(question(tokens))
    assert measurer.asked[0][0] == question(rounded)


DIFFERENT = {
    "shape": {"rows": 512, "cols": 256},
    "pattern": {"pattern": Pattern.parse("4:8")},
    "tokens": {"tokens": 512},
    "dtype": {"dtype": torch.bfloat16},
    "threads": {"threads": 2},
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_other_questions_are_measured_for_themselves(
    planner: Planner, measurer: Measurer, difference: str
) -> None:
    planner.forward(question())
    planner.forward(question(**DIFFERENT[difference]))
    assert len(measurer.asked) == 2


@pytest.mark.parametrize("small", [question(15), question(0), question(4096, 127, 128)])
def test_small_matmuls_are_dense_unmeasured(
    planner: Planner, measurer: Measurer, small: Question
) -> None:
    verdicts = planner.verdicts(small, training=True)
    assert verdicts.choice == Choice(False, False, False)
    assert "less than" in verdicts.forward.reason
    assert measurer.asked == []


ENTRIES = {
    "another field": {"dense": 1.0, "sparse": 1.0, "ratio": 9.0, "low": 9.0, "more": 1.0},
    "a field less": {"dense": 1.0, "sparse": 1.0, "ratio": 9.0},
    "a ratio of 0": {"dense": 1.0, "sparse": 1.0, "ratio": 0.0, "low": 1.0},
    "no time at all": {"dense": 1.0, "sparse": 0.0, "ratio": 9.0, "low": 9.0},
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_an_entry_that_says_nothing_is_measured_again(
    tmp_path: Path, measured: None, kind: str
) -> None:
    cache = PlanCache(tmp_path)
    cache.put({question().key("forward"): ENTRIES[kind]})
    slow = Measurer(forward=LOSS)
    assert not Planner(cache, slow).forward(question()).sparse
    assert len(slow.asked) == 1
    assert not Planner(PlanCache(tmp_path), Measurer()).forward(question()).sparse


def test_without_a_cache_on_disk(tmp_path: Path, measured: None, measurer: Measurer) -> None:
    (tmp_path / "file").touch()
    planner = Planner(PlanCache(tmp_path / "file"), measurer)
    with pytest.warns(PlanCacheWarning):
        assert planner.forward(question(64)).sparse
    for tokens in (64, 128):
        assert planner.forward(question(tokens)).sparse
    assert len(measurer.asked) == 2


def test_a_known_answer_touches_neither_cache_nor_clock(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = SparseLinear(512, 256, pattern=PATTERN)
    decide = decide_for(layer)
    expected = decide(256, torch.float32)

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("not on the hot path")

    monkeypatch.setattr(PlanCache, "get", forbidden)
    monkeypatch.setattr(PlanCache, "put", forbidden)
    monkeypatch.setattr(planner, "_measure", forbidden)
    monkeypatch.setattr(planner, "_lock", None)
    monkeypatch.setattr("builtins.open", forbidden)
    for clock in ("perf_counter", "thread_time", "time"):
        monkeypatch.setattr(f"time.{clock}", forbidden)
    for tokens in (256, 257, 500):
        assert decide(tokens, torch.float32) == expected == Choice(True, True, True)


def test_threads_that_ask_at_once_measure_once(tmp_path: Path, measured: None) -> None:
    begun, go_on = threading.Event(), threading.Event()
    asked = []

    def slow(it: Question, parts: Collection[Part]) -> dict[Part, Timing]:
        asked.append(it)
        begun.set()
        assert go_on.wait(30)
        return dict.fromkeys(parts, WIN)

    planner = Planner(PlanCache(tmp_path), slow)
    answers: list[Verdict] = []
    threads = [
        threading.Thread(target=lambda: answers.append(planner.forward(question())))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 3
    assert all(answer.sparse for answer in answers)
    assert len(asked) == 1


def test_a_fork_while_another_thread_measures(planner: Planner) -> None:
    """The child has a copy of a lock that is taken, and no thread that will release it."""
    planner._lock.acquire()
    planner._process = -1
    assert planner.forward(question()).sparse


# ---- what may not be measured ------------------------------------------------------------------


def test_a_deterministic_run_measures_nothing(tmp_path: Path, measurer: Measurer) -> None:
    assert torch.are_deterministic_algorithms_enabled()
    cache = PlanCache(tmp_path)
    cache.put({question().key("forward"): {"dense": 9.0, "sparse": 1.0, "ratio": 9.0, "low": 9.0}})
    planner = Planner(cache, measurer)
    for tokens in (16, 256, 4096):
        asked = question(tokens)
        assert planner.verdicts(asked, training=True) == fixed_rule(asked)
    assert measurer.asked == []


RULE = {
    "all": (question(1024), "avx512", (True, True, True)),
    "avx2": (question(1024), "avx2", (True, True, True)),
    "no vectors": (question(1024), "baseline", (False, False, False)),
    "few tokens": (question(255), "avx512", (False, False, False)),
    "half kept": (question(1023), "avx512", (True, True, False)),
    "quarter": (
        question(256, pattern=Pattern.parse("2:8T")),
        "avx512",
        (True, True, True),
    ),
    "one way": (question(1024, pattern=Pattern.parse("2:4")), "avx512", (True, False, False)),
    "dense pattern": (
        question(1024, pattern=Pattern.parse("3:4T")),
        "avx512",
        (False, False, False),
    ),
    "unstructured": (
        question(1024, pattern=Pattern.parse("10%")),
        "avx512",
        (False, False, False),
    ),
    "bfloat16": (question(1024, dtype=torch.bfloat16), "avx512", (False, False, False)),
    "narrow": (question(1024, 4096, 255), "avx512", (False, False, False)),
}


@pytest.mark.parametrize("case", RULE)
def test_the_fixed_rule(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, isa, expected = RULE[case]
    monkeypatch.setattr(_core, "isa", lambda: isa)
    verdicts = fixed_rule(asked)
    assert verdicts.choice == Choice(*expected)
    assert verdicts.forward.ratio is None
    assert "deterministic" in verdicts.weight_gradient.reason


def test_nothing_is_measured_in_a_backward_pass(planner: Planner, measurer: Measurer) -> None:
    decide = decide_for(SparseLinear(512, 256, pattern=PATTERN))
    seen = []
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: seen.append(decide(256, torch.float32)))
    y.sum().backward()
    assert seen == [Choice(False, False, False)]
    assert measurer.asked == []
    # It was no answer for good.
    assert decide(256, torch.float32) == Choice(True, True, True)
    y = x * 2
    y.register_hook(lambda gradient: seen.append(decide(256, torch.float32)))
    y.sum().backward()
    assert seen[1] == Choice(True, True, True)


# ---- plan --------------------------------------------------------------------------------------


def test_the_table(planner: Planner, measurer: Measurer) -> None:
    measurer.timings["weight_gradient"] = LOSS
    answer = plan((256, 512), "4:8T", tokens=300, threads=2)
    assert str(answer).splitlines() == [
        "256 x 512 (out x in), 4:8T, 300 tokens, float32, cpu, 2 threads",
        "direction        back end      ratio  reason",
        "forward          nm_cpu         2.00  measured 2.00 x the speed of dense",
        "input_gradient   nm_cpu         2.00  measured 2.00 x the speed of dense",
        "weight_gradient  dense_masked   0.50  measured 0.50 x the speed of dense, less than 1.05",
    ]
    assert answer.forward == Verdict("nm_cpu", 2.0, "measured 2.00 x the speed of dense")


@pytest.mark.parametrize("threads", [None, 3])
def test_layers_and_shapes_ask_the_same(
    planner: Planner, measurer: Measurer, threads: int | None
) -> None:
    layer = SparseLinear(512, 256, pattern="4:8T")
    for asked in (layer, (256, 512), [256, 512], torch.Size([256, 512]), nn.Linear(512, 256)):
        given = None if asked is layer else "4:8T"
        answer = plan(asked, given, tokens=256, threads=threads)
        assert (answer.shape, str(answer.pattern), answer.threads) == (
            (256, 512),
            "4:8T",
            threads or 1,
        )
    assert [asked for asked, _ in measurer.asked] == [question(threads=threads or 1)]


def test_a_weight_that_is_stored_transposed(planner: Planner) -> None:
    from transposable.nn.hf import SparseConv1D

    layer = SparseConv1D(256, 512, pattern="4:8T")
    assert plan(layer, tokens=64).shape == (256, 512)
    assert (decide_for(layer).rows, decide_for(layer).cols) == (256, 512)


def test_layers_that_run_dense_anyway(
    planner: Planner, measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(layer: nn.Module, **options: Any) -> str:
        answer = plan(layer, tokens=256, **options)
        assert {answer.forward, answer.input_gradient, answer.weight_gradient} == {answer.forward}
        assert answer.forward.backend == "dense_masked"
        return answer.forward.reason

    layer = SparseLinear(512, 256, pattern="4:8T")
    monkeypatch.setattr(probe, "has_cuda", lambda: False)
    assert reason(layer, device="cuda:1").startswith("no CUDA")
    assert "runs on CPUs" in reason(layer, device="mps")
    assert "runs on CPUs" in reason(layer, device=torch.device("meta"))
    assert "float16" in reason(layer, dtype=torch.float16)
    layer.weighting = "soft"
    assert "soft" in reason(layer)
    layer.weighting = "dense"
    assert "rests" in reason(layer)
    assert "float64" in reason(SparseLinear(512, 256, dtype=torch.float64, pattern="4:8T"))
    assert "2 groups" in reason(SparseConv2d(256, 256, 3, groups=2, pattern="4:8T"))
    assert measurer.asked == []


def test_a_straight_through_gradient_is_dense(planner: Planner) -> None:
    layer = SparseLinear(512, 256, pattern="4:8T")
    layer.straight_through = True
    answer = plan(layer, tokens=256)
    assert (answer.forward.backend, answer.weight_gradient.backend) == ("nm_cpu", "dense_masked")
    assert "straight-through" in answer.weight_gradient.reason


WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "one side": (((256,), "2:4T"), {}, r"two numbers"),
    "three sides": (((1, 2, 3), "2:4T"), {}, r"two numbers"),
    "negative side": (((-1, 2), "2:4T"), {}, r"two numbers"),
    "text": (("256x512", "2:4T"), {}, r"two numbers"),
    "a float": (((256.0, 512), "2:4T"), {}, r"two numbers"),
    "a bool": (((True, 512), "2:4T"), {}, r"two numbers"),
    "none": ((None, "2:4T"), {}, r"two numbers"),
    "no pattern": (((256, 512),), {}, r"without a pattern"),
    "dense layer": ((nn.Linear(4, 4),), {}, r"without a pattern"),
    "a model": ((nn.Sequential(nn.Linear(4, 4)), "2:4T"), {}, r"no weight of its own"),
    "a norm": ((nn.LayerNorm(4), "2:4T"), {}, r"no weight of its own"),
    "negative tokens": (((256, 512), "2:4T"), {"tokens": -1}, r"tokens=-1"),
    "half a token": (((256, 512), "2:4T"), {"tokens": 0.5}, r"tokens=0.5"),
    "true tokens": (((256, 512), "2:4T"), {"tokens": True}, r"tokens=True"),
    "no threads": (((256, 512), "2:4T"), {"threads": 0}, r"threads=0"),
    "many threads": (((256, 512), "2:4T"), {"threads": 10**6}, r"at most 1024"),
    "unknown device": (((256, 512), "2:4T"), {"device": "abacus"}, r"abacus"),
    "no device": (((256, 512), "2:4T"), {"device": 3.5}, r"3\.5"),
    "dtype": (((256, 512), "2:4T"), {"dtype": "float32"}, r"torch\.dtype"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_questions(case: str) -> None:
    given, options, message = WRONG[case]
    with pytest.raises(PlanError, match=message):
        plan(*given, **{"tokens": 256, **options})


def test_an_unknown_pattern() -> None:
    with pytest.raises(PatternError, match="4of8"):
        plan((256, 512), "4of8", tokens=256)


def test_a_decision_is_for_sparse_layers() -> None:
    with pytest.raises(PlanError, match="sparsify"):
        decide_for(nn.Linear(4, 4))
    with pytest.raises(PlanError, match="linear layer"):
        decide_for(SparseConv2d(8, 8, 3, groups=2, pattern="2:4T"))


# ---- layers that follow the plan ---------------------------------------------------------------


def run(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, layer.weight.grad]


@pytest.mark.parametrize("forward", [WIN, LOSS])
@pytest.mark.parametrize("gradient", [WIN, LOSS])
@pytest.mark.parametrize("weight_gradient", [WIN, LOSS])
def test_a_layer_follows_the_plan(
    planner: Planner,
    measurer: Measurer,
    monkeypatch: pytest.MonkeyPatch,
    forward: Timing,
    gradient: Timing,
    weight_gradient: Timing,
) -> None:
    torch.manual_seed(0)
    layer, x = SparseLinear(136, 128, pattern="2:4T"), torch.randn(5, 8, 136)
    layer.backend = DENSE_MASKED
    expected = run(layer, x)
    measurer.timings |= {
        "forward": forward,
        "input_gradient": gradient,
        "weight_gradient": weight_gradient,
    }
    layer.backend = NMCpu().for_layer(layer)
    ran = []
    for name in ("sparse_matmul", "sparse_weight_gradient"):
        native = getattr(_core, name)

        def counted(*args: Any, name: str = name, native: Any = native) -> Any:
            ran.append(name)
            return native(*args)

        monkeypatch.setattr(_core, name, counted)
    torch.testing.assert_close(run(layer, x), expected)
    wins = [forward, gradient, weight_gradient]
    assert ran.count("sparse_matmul") == wins[:2].count(WIN)
    assert ran.count("sparse_weight_gradient") == wins[2:].count(WIN)
    assert len(measurer.asked) == 1


def test_small_layers_are_refused(measured: None) -> None:
    layer = SparseLinear(64, 64, pattern="2:4T")
    assert "4,096 weights" in str(NMCpu().refuses(layer))
    assert NMCpu("always").refuses(layer) is None


def test_checkpointing_measures_in_the_forward_pass(planner: Planner, measurer: Measurer) -> None:
    from torch.utils.checkpoint import checkpoint

    layer = SparseLinear(136, 128, pattern="2:4T")
    layer.backend = NMCpu().for_layer(layer)
    x = torch.randn(40, 136, requires_grad=True)
    checkpoint(layer, x, use_reentrant=True).sum().backward()
    assert len(measurer.asked) == 1


def test_nothing_is_measured_for_what_runs_dense_anyway(
    planner: Planner, measurer: Measurer
) -> None:
    layer = SparseLinear(136, 128, pattern="2:4T")
    layer.backend = NMCpu().for_layer(layer)
    x = torch.randn(40, 136)
    torch.func.vmap(layer)(x[:, None])
    layer.weighting = "dense"
    layer(x)
    layer.weighting = "masked"
    layer.half()(x.half())
    layer.to("meta")(x.to("meta"))
    assert measurer.asked == []


@pytest.mark.parametrize("conv", [False, True])
def test_what_stays_dense_is_only_looked_up(
    planner: Planner, measurer: Measurer, monkeypatch: pytest.MonkeyPatch, conv: bool
) -> None:
    """A layer that stays dense must not become slower by being asked."""
    measurer.timings |= dict.fromkeys(DIRECTIONS, LOSS)
    monkeypatch.setattr(ask_conv, "planner", lambda: planner)
    if conv:
        layer: Any = SparseConv2d(64, 64, 3, padding=1, pattern="2:4T")
        x, others = torch.randn(4, 64, 7, 9), [(4, 64, 7, 6), (1, 64, 7, 9), (64, 7, 9)]
    else:
        layer = SparseLinear(136, 128, pattern="2:4T")
        x, others = torch.randn(40, 136), [(10, 4, 136), (39, 136)]
    layer.weighting = "dense"
    layer(x)  # dense because of its state: no answer of the plan, and so not remembered
    layer.weighting = "masked"
    wanted = layer(x)
    assert len(measurer.asked) == 1
    asked = []
    original = NMCpu._asked

    def counted(self: NMCpu, *given: Any) -> tuple[bool, bool]:
        asked.append(given)
        return original(self, *given)

    monkeypatch.setattr(NMCpu, "_asked", counted)
    for _ in range(3):
        assert torch.equal(layer(x), wanted)
    assert not asked
    for number, shape in enumerate(others):
        layer(torch.randn(shape))
        assert len(asked) == number + 1
    # Whatever an answer depends on makes another kind of call.
    for number, context in enumerate(
        (torch.no_grad(), torch.autocast("cpu", torch.bfloat16)), len(others)
    ):
        with context:
            layer(x)
            layer(x)
        assert len(asked) == number + 1
    if conv:
        layer(x.to(memory_format=torch.channels_last))
        assert len(asked) == len(others) + 3
    before = len(asked)
    torch.use_deterministic_algorithms(True)
    layer(x)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(3)
    measurer.timings |= dict.fromkeys(DIRECTIONS, WIN)
    with counted_calls() as calls:
        layer(x)
    assert sum(calls.values())
    assert len(asked) == before + 2
    # A copy answers anew, for it may be elsewhere.
    torch.set_num_threads(1)
    pickle.loads(pickle.dumps(layer))(x)
    assert len(asked) == before + 3


def test_a_straight_through_layer_gains_nothing_by_a_gradient_of_kept_weights(
    planner: Planner, measurer: Measurer
) -> None:
    measurer.timings |= {"forward": LOSS, "input_gradient": LOSS}
    layer = SparseLinear(136, 128, pattern="2:4T")
    x = torch.randn(40, 136)
    assert layer.backend._pays(layer, x)
    layer.straight_through = True
    assert not layer.backend._pays(layer, x)
    layer.straight_through = False
    assert layer.backend._pays(layer, x)


def test_what_stays_dense_does_not_grow_for_ever(
    planner: Planner, measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_backend, "_MOST_KINDS", 4)
    measurer.timings |= dict.fromkeys(DIRECTIONS, LOSS)
    layer = SparseLinear(136, 128, pattern="2:4T")
    for tokens in range(32, 60):
        layer(torch.randn(tokens, 136))
        assert len(layer.backend.packed.decide.stays_dense) <= 4
    assert len(measurer.asked) == 1


def test_a_plan_of_nmcpu_is_one_of_three() -> None:
    from transposable.errors import LayerError

    with pytest.raises(LayerError, match="sometimes"):
        NMCpu("sometimes")  # type: ignore[arg-type]


def test_a_model_on_the_plan(planner: Planner) -> None:
    """Copies and pickles follow it too."""
    import copy
    import pickle

    model = nn.Sequential(nn.Linear(136, 128))
    sparsify(model, "2:4T")
    model[0].backend = NMCpu().for_layer(model[0])
    x = torch.randn(20, 136)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


def test_verdicts_of_one_reason() -> None:
    assert Verdicts.dense("so it is").choice == Choice(False, False, False)


def test_the_default_of_a_layer_is_the_plan(planner: Planner, measurer: Measurer) -> None:
    model = nn.Sequential(nn.Linear(136, 128), nn.Linear(128, 16), nn.Conv1d(128, 128, 3))
    sparsify(model, "2:4T")
    assert [layer.backend.name for layer in model] == ["nm_cpu", "dense_masked", "dense_masked"]
    x = torch.randn(40, 136)
    measurer.timings["forward"] = LOSS
    expected = model[0].dense_forward(x, model[0].effective_weight())
    torch.testing.assert_close(model[0](x), expected)
    assert len(measurer.asked) == 1


def test_the_default_follows_a_layer_to_other_dtypes(planner: Planner) -> None:
    layer = SparseLinear(136, 128, pattern="2:4T").double()
    x = torch.randn(40, 136, dtype=torch.float64)
    assert torch.equal(layer(x), layer.dense_forward(x, layer.effective_weight()))
    torch.testing.assert_close(
        layer.float()(x.float()), layer.dense_forward(x.float(), layer.effective_weight())
    )
