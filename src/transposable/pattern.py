"""Sparsity patterns: N:M along the contraction axis, transposable, sequential, unstructured."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

from transposable.errors import PatternError

Structure = Literal["row", "transposable", "sequential", "unstructured"]

MAX_M: Final = 64
"""Largest tile side: one row of a tile fits a 64-bit word."""

_MILLIONTHS: Final = 1_000_000
_SUFFIX: Final[dict[Structure, str]] = {"row": "", "transposable": "T", "sequential": "S"}
_NM: Final = re.compile(r"(0|[1-9]\d{0,3}):(0|[1-9]\d{0,3})([TS]?)")
_PERCENT: Final = re.compile(r"(0|[1-9]\d{0,2})(?:\.(\d{1,4}))?%")
_FORMS: Final = (
    "accepted forms: 'N:M' (N kept of M consecutive along the forward contraction axis), "
    "'N:MT' (transposable: N kept of M along rows and columns of every M x M tile), "
    "'N:MS' (sequential: the N kept are consecutive) and 'P%' (unstructured, P percent kept)"
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A sparsity pattern; N:M means N *kept* of every M consecutive weights.

    Args:
        n: number of weights kept in every group, 1 <= n < m.
        m: group length, 2 <= m <= 64; for an unstructured pattern n/m is the density.
        structure: "row" (plain N:M), "transposable", "sequential" or "unstructured".

    Raises:
        PatternError: if n and m are no integers or lie outside these limits.

    The paper (Hubara et al., NeurIPS 2021) counts the *zeros*; :meth:`from_zeros` converts. At 50 %
    the two conventions agree.

    Example:
        >>> p = Pattern.parse("4:8T")
        >>> p.n, p.m, p.transposable, p.density, str(p)
        (4, 8, True, 0.5, '4:8T')
        >>> Pattern.from_zeros(6, 8)
        Pattern('2:8')
    """

    n: int
    m: int
    structure: Structure = "row"

    def __post_init__(self) -> None:
        if (
            isinstance(self.n, bool)
            or isinstance(self.m, bool)
            or not (isinstance(self.n, int) and isinstance(self.m, int))
        ):
            raise PatternError(
                f"Pattern: received n={self.n!r}, m={self.m!r}; both must be integers; "
                "pass for example Pattern(2, 4)"
            )
        if self.structure not in ("row", "transposable", "sequential", "unstructured"):
            raise PatternError(
                f"Pattern: received structure {self.structure!r}; it must be 'row', "
                "'transposable', 'sequential' or 'unstructured'"
            )
        if not 1 <= self.n < self.m:
            raise PatternError(
                f"Pattern: received n={self.n}, m={self.m}; the rule is 1 <= n < m, since n is the "
                "number kept of every m; by its zeros a pattern is Pattern.from_zeros(zeros, m)"
            )
        if self.structure != "unstructured" and self.m > MAX_M:
            raise PatternError(
                f"Pattern: received m={self.m}; m is at most {MAX_M}; use a smaller group, for "
                "example the same density with m=32"
            )
        if self.structure == "unstructured":
            # One pattern for one density, and every one of them has a string that parse reads.
            common = math.gcd(self.n, self.m)
            if _MILLIONTHS % (self.m // common):
                raise PatternError(
                    f"Pattern: received the density {self.n}/{self.m}; a percentage has at most "
                    "four decimals; round it, for example Pattern.parse('33.3333%')"
                )
            object.__setattr__(self, "n", self.n // common)
            object.__setattr__(self, "m", self.m // common)

    @classmethod
    def parse(cls, text: str | Pattern) -> Pattern:
        """Read "2:4", "4:8T", "4:8S" or "50%"; a Pattern passes through.

        Raises:
            PatternError: if the text has none of these forms.

        Example:
            >>> Pattern.parse("50%").structure
            'unstructured'
        """
        if isinstance(text, Pattern):
            return text
        if not isinstance(text, str):
            raise PatternError(
                f"Pattern.parse: received {type(text).__name__}, a string is needed; {_FORMS}"
            )
        if found := _NM.fullmatch(text):
            n, m, suffix = int(found[1]), int(found[2]), found[3]
            structure: Structure = {"": "row", "T": "transposable", "S": "sequential"}[suffix]  # type: ignore[assignment]
            return cls(n, m, structure)
        if found := _PERCENT.fullmatch(text):
            decimals = (found[2] or "").rstrip("0")
            return cls(int(found[1] + decimals), 100 * 10 ** len(decimals), "unstructured")
        raise PatternError(f"Pattern.parse: cannot read {text!r}; {_FORMS}")

    @classmethod
    def from_zeros(cls, n: int, m: int, structure: Structure = "row") -> Pattern:
        """The pattern with n *zeros* in every group of m, the paper's way of counting."""
        if isinstance(n, int) and isinstance(m, int) and not 1 <= n < m:
            raise PatternError(
                f"Pattern.from_zeros: received {n} zeros of {m}; the rule is 1 <= zeros < m"
            )
        return cls(m - n, m, structure)

    @property
    def transposable(self) -> bool:
        """Whether N of M holds along rows and columns of every tile."""
        return self.structure == "transposable"

    @property
    def density(self) -> float:
        """Share of the weights that is kept, n / m."""
        return self.n / self.m

    def __str__(self) -> str:
        if self.structure == "unstructured":
            return f"{100 * self.n / self.m:.6g}%"
        return f"{self.n}:{self.m}{_SUFFIX[self.structure]}"

    def __repr__(self) -> str:
        return f"Pattern({str(self)!r})"
