"""What is said about a claim, and the rules by which it is said: no verdict is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

TOLERANCE: Final = 0.5
"""Points of accuracy within which two networks count as equally good; the training experiments
aimed at this distance to dense before anything was measured."""
SURE: Final = 2.0
"""Standard errors from which a difference counts as resolved."""


class Verdict(Enum):
    """The last column of the table; the value is what a reader sees."""

    HOLDS = "holds"
    PARTLY = "holds in part"
    FAILS = "does not hold"
    DIFFERS = "differs"
    OPEN = "not settled"
    MISSING = "not measured"


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, and the rule by which it is judged here."""

    text: str
    where: str
    rule: str


@dataclass(frozen=True)
class Finding:
    """One row of the table; ``because`` is the reason where a claim does not simply hold."""

    claim: Claim
    measured: str
    verdict: Verdict
    because: str = ""

    def cells(self) -> list[str]:
        verdict = f"**{self.verdict.value}**"
        return [
            self.claim.text,
            self.claim.where,
            self.measured,
            f"{verdict}: {self.because}" if self.because else verdict,
        ]


def no_worse(difference: float, error: float, tolerance: float = TOLERANCE) -> Verdict:
    """Whether "no worse than" holds for a mean difference with its standard error.

    Example:
        >>> no_worse(-0.2, 0.3).value, no_worse(-3.0, 0.5).value, no_worse(-0.7, 0.5).value
        ('holds', 'does not hold', 'not settled')
    """
    within, lost = difference >= -tolerance, difference + SURE * error < 0
    if (within and not lost) or difference - SURE * error >= -tolerance:
        return Verdict.HOLDS
    return Verdict.FAILS if lost and not within else Verdict.OPEN


NO_WORSE: Final = (
    f"Holds if the difference is at least -{TOLERANCE} and no loss is resolved (difference + "
    f"{SURE:.0f} standard errors >= 0), or if difference - {SURE:.0f} standard errors is still at "
    f"least -{TOLERANCE}; does not hold if it is below -{TOLERANCE} and a loss is resolved; else "
    "not settled."
)
JOINED: Final = (
    " Tried several times, a claim has to hold each time; if only sometimes, it holds in part; if "
    "it never does and fails once, it does not hold."
)


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict on a claim that was tried several times.

    Example:
        >>> joined([Verdict.HOLDS, Verdict.OPEN]).value, joined([Verdict.OPEN, Verdict.FAILS]).value
        ('holds in part', 'does not hold')
    """
    if not verdicts:
        return Verdict.MISSING
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if Verdict.HOLDS in verdicts:
        return Verdict.PARTLY
    return Verdict.FAILS if Verdict.FAILS in verdicts else Verdict.OPEN
