"""How things are timed: interleaved rounds, wall and CPU time, medians, ratios round by round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Clock = Literal["wall", "cpu"]

PAUSE_S = 0.01
"""Rest between two samples: thread pools of the previous contender stop spinning meanwhile."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One call: seconds of wall clock, and of CPU summed over all threads of the process."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Contender:
    """A name and how to take one sample of it."""

    name: str
    measure: Callable[[], Sample]


@dataclass(slots=True)
class Series:
    """The samples of one contender, one a round."""

    samples: list[Sample] = field(default_factory=list)

    def of(self, clock: Clock) -> list[float]:
        """The seconds of all rounds on one clock."""
        return [getattr(sample, clock) for sample in self.samples]

    def median(self, clock: Clock = "wall") -> float:
        """Median over the rounds."""
        return statistics.median(self.of(clock))

    def summary(self) -> dict[str, Any]:
        """Medians, minima and the number of rounds, for the results file."""
        return {
            "wall_median_s": self.median("wall"),
            "wall_min_s": min(self.of("wall")),
            "cpu_median_s": self.median("cpu"),
            "cpu_min_s": min(self.of("cpu")),
            "rounds": len(self.samples),
        }


def timed(call: Callable[[], object]) -> Callable[[], Sample]:
    """A function that runs ``call`` once and says how long it took.

    The result is kept until the clocks are read, so that freeing it is not timed.
    """

    def measure() -> Sample:
        cpu, wall = time.process_time(), time.perf_counter()
        result = call()
        sample = Sample(time.perf_counter() - wall, time.process_time() - cpu)
        del result
        return sample

    return measure


def interleave(contenders: Sequence[Contender], rounds: int, warmup: int = 1) -> dict[str, Series]:
    """Take one sample of every contender per round, every other round in reverse order.

    Slow drifts of the machine (clock speed, neighbours) so hit all contenders alike, and a ratio
    taken within a round is free of them. The warm-up rounds are thrown away.
    """
    series = {contender.name: Series() for contender in contenders}
    if len(series) != len(contenders):
        raise ValueError("interleave: two contenders have the same name; give each its own")
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(-warmup, rounds):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                time.sleep(PAUSE_S)
                sample = contender.measure()
                if number >= 0:
                    series[contender.name].samples.append(sample)
            gc.collect()
    finally:
        if enabled:
            gc.enable()
    return series


def ratio(above: Series, below: Series, clock: Clock = "wall") -> dict[str, float]:
    """above / below, taken round by round: median, smallest and largest."""
    pairs = zip(above.of(clock), below.of(clock), strict=True)
    # A clock may not resolve the tiniest sizes; the floor keeps the quotient finite there.
    ratios = [max(a, 1e-9) / max(b, 1e-9) for a, b in pairs]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
