"""The tuner: what is slow loses, what is wrong or raises never runs; made-up libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from tests.sparse.semi.fake_gpu import Calls, gpu
from transposable.sparse.cache import PlanCache
from transposable.sparse.semi import CUSPARSELT, REFERENCE, Algorithm
from transposable.sparse.semi import tuner as tuners
from transposable.sparse.semi.tuner import Case, GpuBench, Tuner, from_entry, to_entry, tune

__all__ = ["gpu"]
CPU = torch.device("cpu")
IDENTITY = {"gpu": "made up"}


def case(tokens: int = 64, bias: bool = False, left: bool = False) -> Case:
    return Case(CUSPARSELT, 64, 128, tokens, torch.bfloat16, bias, CPU, left)


class MadeUp:
    """Algorithms with seconds, and seeds at which they are wrong."""

    def __init__(
        self,
        seconds: dict[int, float],
        wrong: Callable[[int, int], str | None] = lambda alg_id, seed: None,
    ) -> None:
        self.times, self.wrong = seconds, wrong
        self.checked: list[tuple[int, int]] = []

    def algorithms(self) -> Iterable[Algorithm]:
        return [Algorithm(alg_id) for alg_id in self.times]

    def problem(self, algorithm: Algorithm, seed: int) -> str | None:
        self.checked.append((algorithm.alg_id, seed))
        return self.wrong(algorithm.alg_id, seed)

    def seconds(self, algorithm: Algorithm) -> float:
        return self.times[algorithm.alg_id]


@pytest.fixture(autouse=True)
def measured() -> Iterator[None]:
    """The suite is deterministic, under which nothing is timed."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


def ids(found: list[tuple[Algorithm, float]]) -> list[int]:
    return [algorithm.alg_id for algorithm, _ in found]


def test_the_fastest_right_one_wins() -> None:
    def wrong(alg_id: int, seed: int) -> str | None:
        if alg_id == 1:
            raise RuntimeError("CUDA error: operation not supported\nat line 3")
        return "9 of 9 entries are wrong" if alg_id == 2 else None

    bench = MadeUp({0: 5.0, 1: 0.1, 2: 0.2, 3: 1.0, 4: 2.0, 5: 3.0, 6: 9.0}, wrong)
    report = tune(case(), bench)
    assert ids(report.ranking) == [3, 4, 5]
    assert report.rejected == {
        Algorithm(1): "RuntimeError: CUDA error: operation not supported",
        Algorithm(2): "9 of 9 entries are wrong",
    }
    assert {(3, 0), (3, 1), (3, 2)} <= set(bench.checked)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wrong_at_times_is_wrong(seed: int) -> None:
    bench = MadeUp({0: 5.0, 1: 1.0}, lambda i, s: "wrong" if (i, s) == (1, seed) else None)
    assert ids(tune(case(), bench).ranking) == [0]


def test_nothing_right_is_dense(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path, IDENTITY)
    tuner = Tuner(cache, lambda case: MadeUp({0: 1.0}, lambda *_: "wrong"))
    tuner.why_unsound = lambda case: None  # type: ignore[method-assign]
    assert tuner.algorithm(case()) is None
    assert from_entry(cache.get(case().coarse().key())) == []
    assert tuner.reports[0].rejected == {Algorithm(0): "wrong"}


def trusting(cache: PlanCache, bench: MadeUp) -> Tuner:
    tuner = Tuner(cache, lambda case: bench)
    tuner.why_unsound = lambda case: None  # type: ignore[method-assign]
    return tuner


def test_the_cache_spares_the_timing_and_not_the_check(tmp_path: Path) -> None:
    first = trusting(PlanCache(tmp_path, IDENTITY), MadeUp({0: 2.0, 1: 1.0, 2: 3.0}))
    assert first.algorithm(case()) == Algorithm(1)
    # Another process, in which the best has gone wrong: the second best runs.
    bench = MadeUp({0: 2.0, 1: 1.0, 2: 3.0}, lambda i, s: "wrong" if i == 1 else None)
    second = trusting(PlanCache(tmp_path, IDENTITY), bench)
    assert second.algorithm(case()) == Algorithm(0)
    assert second.reports == []
    assert bench.checked == [(1, 3), (0, 3)]
    # All that are known have: they are tuned again.
    bench = MadeUp({i: float(i) for i in range(5)}, lambda i, s: "wrong" if i < 4 else None)
    third = trusting(PlanCache(tmp_path, IDENTITY), bench)
    assert third.algorithm(case()) == Algorithm(4)
    assert len(third.reports) == 1
    # Another GPU starts from nothing.
    fourth = trusting(PlanCache(tmp_path, {"gpu": "another"}), MadeUp({7: 1.0}))
    assert fourth.algorithm(case()) == Algorithm(7)


def test_every_number_of_tokens_is_checked_once(tmp_path: Path) -> None:
    bench = MadeUp({0: 1.0})
    tuner = trusting(PlanCache(tmp_path, IDENTITY), bench)
    for tokens in (1000, 1001, 1008, 1000, 1016):
        assert tuner.algorithm(case(tokens)) == Algorithm(0)
    assert len(tuner.reports) == 1  # 896 to 1023 tokens are one case to time
    assert [seed for _, seed in bench.checked].count(3) == 3  # 1000, 1008, 1016


def test_nothing_is_tried_when_it_may_not_be(tmp_path: Path) -> None:
    bench = MadeUp({0: 1.0})
    tuner = trusting(PlanCache(tmp_path, IDENTITY), bench)
    assert tuner.algorithm(case(), may_measure=False) is None
    assert bench.checked == []
    tuner.algorithm(case())
    assert tuner.algorithm(case(), may_measure=False) == Algorithm(0)


def test_a_damaged_entry_is_tuned_anew(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path, IDENTITY)
    cache.put({case().coarse().key(): {"count": 2, "alg_id_0": 1}})
    tuner = trusting(cache, MadeUp({5: 1.0}))
    assert tuner.algorithm(case()) == Algorithm(5)
    assert from_entry({"count": 99}) is None
    assert from_entry(None) is None


def test_entries_are_what_they_were() -> None:
    report = tuners.Report(case(), [(Algorithm(4, 3, 2, False), 1e-3), (Algorithm(), 2e-3)])
    assert from_entry(to_entry(report)) == [Algorithm(4, 3, 2, False), Algorithm()]
    assert all(value >= 0 for value in to_entry(report).values())


def test_deterministic_runs_time_nothing() -> None:
    bench = MadeUp({0: 9.0, 1: 1.0})
    tuner = trusting(PlanCache(), bench)
    torch.use_deterministic_algorithms(True)
    assert tuner.algorithm(case()) == Algorithm()
    assert tuner.reports == []


# ---- the real checks on the made-up library ------------------------------------------------------


def clock() -> Callable[[], float]:
    ticks = iter(range(10**9))
    return lambda: float(next(ticks))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("tokens", [8, 24, 5000])
def test_results_of_a_sound_library_pass(gpu: Calls, bias: bool, left: bool, tokens: int) -> None:
    bench = GpuBench(case(tokens, bias and not left, left), clock())
    for algorithm in (Algorithm(), Algorithm(1, fused_bias=False)):
        for seed in (0, 1, 2, 3):
            assert bench.problem(algorithm, seed) is None
    assert bench.seconds(Algorithm()) > 0


BROKEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one entry": lambda y: y.index_put((torch.tensor(3), torch.tensor(5)), y[3, 5] + 64),
    "unwritten": lambda y: torch.where(torch.arange(y.shape[1]) == 7, torch.nan, y),
    "zeros": torch.zeros_like,
    "rows mixed up": lambda y: y.roll(1, 0),
    "scaled": lambda y: y * 1.05,
    "of another dtype": lambda y: y.float(),
    "of another shape": lambda y: y[:-16],
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("left", [False, True])
def test_wrong_results_are_seen(gpu: Calls, how: str, left: bool) -> None:
    gpu.broken = {2: BROKEN[how]}
    bench = GpuBench(case(64, False, left), clock())
    assert bench.problem(Algorithm(1), 0) is None
    assert bench.problem(Algorithm(2), 0) is not None


def test_a_bias_that_is_kept_from_an_earlier_call_is_seen(gpu: Calls) -> None:
    gpu.deaf_to_bias = True
    bench = GpuBench(case(64, True), clock())
    report = tune(case(64, True), bench)
    assert report.rejected.keys() == {Algorithm(i) for i in range(gpu.last_id + 1)} | {
        a for a in report.rejected if a.alg_id > gpu.last_id
    }
    assert {a.fused_bias for a, _ in report.ranking} == {False}


def test_a_whole_tuning(gpu: Calls, tmp_path: Path) -> None:
    """All identifiers are tried; those that do not exist raise, and a wrong one is left out."""
    gpu.broken = {1: BROKEN["one entry"]}
    tuner = Tuner(PlanCache(tmp_path, IDENTITY), lambda case: GpuBench(case, clock()))
    found = tuner.algorithm(case(60, True))
    assert found is not None
    assert found.alg_id in (0, 2, 3)
    (report,) = tuner.reports
    assert {a.alg_id for a, _ in report.ranking} <= {0, 2, 3}
    assert "entries are wrong" in report.rejected[Algorithm(1)]
    assert "invalid value" in report.rejected[Algorithm(9)]


def test_the_readable_twin_is_not_tuned() -> None:
    tuner = Tuner(None, lambda case: pytest.fail("nothing to try"))
    asked = Case(REFERENCE, 8, 8, 5, torch.float32, False, CPU)
    assert tuner.algorithm(asked, may_measure=False) == Algorithm()


def test_an_unsound_library_is_dense(gpu: Calls) -> None:
    gpu.broken = dict.fromkeys(range(4), lambda y: y * 1.05)
    tuner = Tuner(None, lambda case: pytest.fail("nothing to try"))
    assert tuner.algorithm(case()) is None
    assert "bit for bit" in str(tuner.why_unsound(case()))


@pytest.mark.parametrize(
    ("tokens", "coarse"), [(1, 8), (8, 8), (13008, 12288), (16384, 16384), (9, 8), (15, 16)]
)
def test_coarse_tokens(tokens: int, coarse: int) -> None:
    assert case(tokens).coarse().tokens == coarse
