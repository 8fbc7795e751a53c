"""When masks are refreshed: pure functions of the number of optimizer steps done."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from transposable.errors import RecipeError


class Schedule(ABC):
    """Says at which steps masks are refreshed; holds no state, so that a resumed run agrees."""

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether to refresh after this optimizer step, counted from 1."""


@dataclass(frozen=True, slots=True)
class Never(Schedule):
    """Masks stay as they are.

    Example:
        >>> any(Never().due(step) for step in range(1, 100))
        False
    """

    def due(self, step: int) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Every(Schedule):
    """After every ``period`` steps.

    Example:
        >>> [step for step in range(1, 10) if Every(4).due(step)]
        [4, 8]
    """

    period: int

    def __post_init__(self) -> None:
        _positive("Every", "period", self.period)

    def due(self, step: int) -> bool:
        return step % self.period == 0


@dataclass(frozen=True, slots=True)
class Until(Schedule):
    """Another schedule up to and including step ``last``; then the masks are frozen.

    Example:
        >>> [step for step in range(1, 20) if Until(8, Every(4)).due(step)]
        [4, 8]
    """

    last: int
    schedule: Schedule | int = 1

    def __post_init__(self) -> None:
        _positive("Until", "last", self.last)
        object.__setattr__(self, "schedule", make_schedule(self.schedule))

    def due(self, step: int) -> bool:
        assert isinstance(self.schedule, Schedule)
        return step <= self.last and self.schedule.due(step)


@dataclass(frozen=True, slots=True)
class Growing(Schedule):
    """Periods that grow: the first after ``first`` steps, each next one ``factor`` times as long.

    Period k = 0, 1, ... is ceil(first * factor^k), at most ``longest``.

    Example:
        >>> [step for step in range(1, 40) if Growing(2, factor=2.0).due(step)]
        [2, 6, 14, 30]
    """

    first: int = 1
    factor: float = 1.5
    longest: int | None = None

    def __post_init__(self) -> None:
        _positive("Growing", "first", self.first)
        if self.longest is not None:
            _positive("Growing", "longest", self.longest)
            if self.longest < self.first:
                raise RecipeError(
                    f"Growing: received first={self.first} and longest={self.longest}; periods "
                    f"grow from first to longest; for a constant period use Every({self.longest})"
                )
        number = isinstance(self.factor, (int, float)) and not isinstance(self.factor, bool)
        if not number or not 1.0 < self.factor < math.inf:
            raise RecipeError(
                f"Growing: received factor={self.factor!r}; periods grow by a factor above 1; for "
                f"a constant period use Every({self.first})"
            )

    def due(self, step: int) -> bool:
        # The growing periods are counted once for all steps up to the next power of two.
        limit = 1 << max(step, 1).bit_length()
        growing, end = _growth(self.first, float(self.factor), self.longest, limit)
        if end is None or step <= end:
            return step in growing
        assert self.longest is not None
        return (step - end) % self.longest == 0


@functools.lru_cache(maxsize=64)
def _growth(
    first: int, factor: float, longest: int | None, limit: int
) -> tuple[frozenset[int], int | None]:
    """Refreshes while periods grow, up to a limit, and the last of them if it is before that."""
    steps: list[int] = []
    at, exact = 0, float(first)
    while at < limit:
        # A product such as 10 * 1.1 is a hair above the integer that is meant.
        period = math.ceil(exact * (1 - 1e-12)) if exact < limit else limit
        if longest is not None and period >= longest:
            return frozenset(steps), at
        at += period
        steps.append(at)
        exact *= factor
    return frozenset(steps), None


def make_schedule(refresh: int | Schedule) -> Schedule:
    """A Schedule from a period in steps, or the Schedule itself.

    Raises:
        RecipeError: if it is neither.
    """
    if isinstance(refresh, Schedule):
        return refresh
    if isinstance(refresh, int) and not isinstance(refresh, bool) and refresh >= 1:
        return Every(refresh)
    raise RecipeError(
        f"refresh: received {refresh!r}; give a period in steps (an integer >= 1) or a schedule: "
        "Every(k), Until(step, schedule), Growing(first, factor), Never()"
    )


def _positive(schedule: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f"{schedule}: received {name}={value!r}; it must be an integer >= 1")
