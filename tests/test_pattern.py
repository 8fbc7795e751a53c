"""Patterns: the grammar, its limits, and that strings round-trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transposable import Pattern, PatternError
from transposable.pattern import MAX_M

STRUCTURES = ("row", "transposable", "sequential")
GROUPED = st.integers(2, MAX_M).flatmap(
    lambda m: st.builds(Pattern, st.integers(1, m - 1), st.just(m), st.sampled_from(STRUCTURES))
)
PERCENT = st.builds(Pattern, st.integers(1, 999_999), st.just(1_000_000), st.just("unstructured"))


@given(GROUPED | PERCENT)
def test_strings_round_trip(pattern: Pattern) -> None:
    again = Pattern.parse(str(pattern))
    assert again == pattern
    assert hash(again) == hash(pattern)
    assert str(again) == str(pattern)
    assert eval(repr(pattern), {"Pattern": Pattern.parse}) == pattern


@pytest.mark.parametrize(
    ("text", "n", "m", "structure"),
    [
        ("2:4", 2, 4, "row"),
        ("4:8T", 4, 8, "transposable"),
        ("4:8S", 4, 8, "sequential"),
        ("1:2T", 1, 2, "transposable"),
        ("63:64T", 63, 64, "transposable"),
        ("50%", 1, 2, "unstructured"),
        ("12.5%", 1, 8, "unstructured"),
        ("0.0001%", 1, 1_000_000, "unstructured"),
        ("99.9999%", 999_999, 1_000_000, "unstructured"),
    ],
)
def test_accepted_forms(text: str, n: int, m: int, structure: str) -> None:
    pattern = Pattern.parse(text)
    assert (pattern.n, pattern.m, pattern.structure) == (n, m, structure)
    assert str(pattern) == text
    assert pattern.density == n / m
    assert pattern.transposable == (structure == "transposable")
    assert Pattern.parse(pattern) is pattern


@pytest.mark.parametrize("text", ["50.0%", "50.0000%"])
def test_equal_densities_are_one_pattern(text: str) -> None:
    assert Pattern.parse(text) == Pattern.parse("50%") == Pattern(1, 2, "unstructured")


REFUSED = [
    "",
    " ",
    "2",
    "2:",
    ":4",
    "2:4:8",
    "2/4",
    "2:4t",
    "2:4X",
    "2:4TS",
    " 2:4",
    "2:4 ",
    "2:4\n",
    "2 : 4",
    "+2:4",
    "-2:4",
    "2:-4",
    "02:4",
    "2:04",
    "2.0:4",
    "0x2:4",
    "２:４",  # noqa: RUF001 - digits of another script are refused
    "٢:٤",
    "1_0:20",
    "%",
    "50",
    "50 %",
    "50.%",
    ".5%",
    "050%",
    "12.34567%",
    "50%T",
    "1e1%",
    "nan%",
]


@pytest.mark.parametrize("text", REFUSED)
def test_refused_forms(text: str) -> None:
    with pytest.raises(PatternError, match=r"cannot read .*accepted forms: 'N:M'"):
        Pattern.parse(text)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        pattern = Pattern.parse(text)
    except PatternError:
        return
    assert Pattern.parse(str(pattern)) == pattern


@pytest.mark.parametrize("value", [None, 2, 2.4, b"2:4", ("2", "4"), ["2:4"]])
def test_only_strings_are_parsed(value: object) -> None:
    with pytest.raises(PatternError, match=f"received {type(value).__name__}, a string is needed"):
        Pattern.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0:4", "4:4", "5:4", "0:0", "8:4T", "1:1T", "0%", "100%", "101%"])
def test_the_rule_one_le_n_lt_m(text: str) -> None:
    with pytest.raises(PatternError, match=r"the rule is 1 <= n < m.*from_zeros"):
        Pattern.parse(text)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_limit_of_m(structure: str) -> None:
    assert Pattern(32, 64, structure).m == 64
    with pytest.raises(PatternError, match=r"received m=65; m is at most 64; use a smaller group"):
        Pattern(32, 65, structure)


@pytest.mark.parametrize(("n", "m"), [(True, 4), (1, True), (2.0, 4), (2, "4"), (None, 4)])
def test_n_and_m_are_integers(n: object, m: object) -> None:
    with pytest.raises(PatternError, match="both must be integers"):
        Pattern(n, m)  # type: ignore[arg-type]


def test_an_unknown_structure() -> None:
    with pytest.raises(PatternError, match="received structure 'column'"):
        Pattern(2, 4, "column")  # type: ignore[arg-type]


def test_a_density_without_a_string_is_refused() -> None:
    with pytest.raises(PatternError, match="at most four decimals"):
        Pattern(1, 3, "unstructured")


@given(GROUPED)
def test_from_zeros_counts_the_other_side(pattern: Pattern) -> None:
    zeros = Pattern.from_zeros(pattern.m - pattern.n, pattern.m, pattern.structure)
    assert zeros == pattern


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (-1, 4), (5, 4)])
def test_from_zeros_refuses(n: int, m: int) -> None:
    with pytest.raises(PatternError, match="the rule is 1 <= zeros < m"):
        Pattern.from_zeros(n, m)
    with pytest.raises(PatternError, match="integers"):
        Pattern.from_zeros(1.5, m)  # type: ignore[arg-type]


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        Pattern.parse("2:4").n = 3  # type: ignore[misc]
