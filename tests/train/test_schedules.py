"""Schedules: pure functions of the step, checked against lists made the slow way."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transposable import RecipeError
from transposable.train import Every, Growing, Never, Schedule, Until
from transposable.train.schedules import _growth, make_schedule

LAST = 300
periods = st.integers(1, 60)


def due(schedule: Schedule) -> list[int]:
    return [step for step in range(1, LAST + 1) if schedule.due(step)]


@given(periods)
def test_every(period: int) -> None:
    assert due(Every(period)) == list(range(period, LAST + 1, period))


@given(periods, st.integers(1, LAST))
def test_until(period: int, last: int) -> None:
    expected = [step for step in due(Every(period)) if step <= last]
    assert due(Until(last, period)) == due(Until(last, Every(period))) == expected


@given(
    st.integers(1, 40),
    # Sums of few powers of two: the products are exact, and rounding up has one answer.
    st.sampled_from([1.25, 1.5, 2.0, 3.0]),
    st.none() | st.integers(0, 60),
)
def test_growing(first: int, factor: float, more: int | None) -> None:
    longest = None if more is None else first + more
    expected, at, period = [], 0, float(first)
    while at <= LAST:
        at += min(math.ceil(period), longest or math.inf)
        expected.append(at)
        period *= factor
    schedule = Growing(first, factor=factor, longest=longest)
    assert due(schedule) == [step for step in expected if step <= LAST]


def test_never() -> None:
    assert due(Never()) == []


def test_a_far_step_is_quick() -> None:
    """Resuming at step 10^9 does not count up to it."""
    assert not Growing(1, factor=1.01, longest=1000).due(10**9 + 1)
    assert Every(40).due(10**9)


def test_make_schedule() -> None:
    assert make_schedule(7) == Every(7)
    assert make_schedule(schedule := Until(9, 3)) is schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize("received", [0, -1, 2.0, True, "40", None])
def test_what_is_no_schedule(received: object) -> None:
    with pytest.raises(RecipeError, match="refresh: received"):
        make_schedule(received)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Every(0),
        lambda: Every(True),
        lambda: Until(0),
        lambda: Until(5, 0),
        lambda: Growing(0),
        lambda: Growing(1, factor=1.0),
        lambda: Growing(1, factor=math.inf),
        lambda: Growing(1, factor=math.nan),
        lambda: Growing(1, longest=0),
    ],
)
def test_options_that_cannot_be(make: object) -> None:
    with pytest.raises(RecipeError, match="received"):
        make()  # type: ignore[operator]


schedules = st.recursive(
    st.one_of(
        st.builds(Every, periods),
        st.just(Never()),
        st.builds(Growing, st.integers(1, 9), st.floats(1.01, 4.0), st.none() | st.integers(9, 60)),
    ),
    lambda inner: st.builds(Until, st.integers(1, LAST), inner),
    max_leaves=3,
)


@given(schedules, st.lists(st.integers(1, LAST), max_size=20), st.randoms())
def test_a_schedule_depends_on_the_step_alone(
    schedule: Schedule, asked: list[int], random: random.Random
) -> None:
    """In whatever order, however often, in this object or an equal one that was asked nothing."""
    forward = {step: schedule.due(step) for step in asked}
    again = [*asked, *asked]
    random.shuffle(again)
    _growth.cache_clear()
    assert all(schedule.due(step) == forward[step] for step in again)
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert repr(copy) == repr(schedule)
    assert all(copy.due(step) == forward[step] for step in asked)


@given(
    st.integers(1, 50), st.integers(101, 300).map(lambda percent: percent / 100), st.integers(0, 40)
)
def test_growing_periods_are_those_that_are_written(first: int, factor: float, more: int) -> None:
    """In decimal fractions: 10 * 1.1 is 11, though the float is a hair above."""
    written, at = Fraction(round(factor * 100), 100), 0
    longest = first + more
    steps = due(Growing(first, factor, longest))
    for number, step in enumerate(steps[:20]):
        at += min(math.ceil(first * written**number), longest)
        assert step == at


@pytest.mark.parametrize(
    "make",
    [
        lambda: Growing(8, longest=4),
        lambda: Growing(8, factor="2"),
        lambda: Growing(8, factor=True),
        lambda: Growing(1.0),
        lambda: Until(5, "often"),
        lambda: Until(5.0, 1),
        lambda: Every(None),
    ],
)
def test_more_options_that_cannot_be(make: Callable[[], Schedule]) -> None:
    with pytest.raises(RecipeError, match="received"):
        make()


def test_a_slow_growth_is_counted_once() -> None:
    """A training loop asks at every step; counting anew each time would be quadratic."""
    schedule = Growing(1, factor=1.0001)
    _growth.cache_clear()
    assert sum(schedule.due(step) for step in range(1, 20_000)) > 100
    assert _growth.cache_info().misses <= (20_000).bit_length() + 1
