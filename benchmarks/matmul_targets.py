"""What the speed of the matrix products is held against."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.matmul_peers import DIRECTIONS, TORCH, Direction

LEAST_TOKENS: Final = 256
"""Below this no product of float32 is judged."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A ratio that is asked for, and the one that is hoped for."""

    least: float
    aim: float


LIMITS: Final[dict[tuple[Direction, float], Limit]] = {
    ("forward", 0.5): Limit(1.6, 1.8),
    ("input_gradient", 0.5): Limit(1.6, 1.8),
    ("weight_gradient", 0.5): Limit(1.2, 1.4),
    ("forward", 0.25): Limit(2.5, 3.0),
    ("input_gradient", 0.25): Limit(2.5, 3.0),
    ("weight_gradient", 0.25): Limit(2.0, 2.3),
}
AVX2: Final = Limit(1.4, 1.6)
BYTES: Final = {0.5: 0.6}
"""Largest share of the dense bytes that one float32 stream takes, by density."""


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target with the median over its products and the worst of them.

    Met: the worst one reaches it. A quick run is not judged.
    """
    rows = [row for section in results["sections"] for row in _of_section(section)]
    return [{**row, "judged": not results["quick"]} for row in rows]


def density(pattern: str) -> float:
    """Of a pattern's name: "4:8T" is 0.5."""
    kept, group = pattern.removesuffix("T").split(":")
    return int(kept) / int(group)


def _of_section(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if section["dtype"] != "float32":
        return
    if section["isa"] is not None:
        if section["isa"] == section["isa_taken"]:
            found = _ratios(section, "forward", 0.5, "torch")
            yield from _row(section, f"forward / {TORCH['forward']}, 50 %", AVX2, found)
        return
    for direction in DIRECTIONS:
        for share in (0.5, 0.25):
            limit = LIMITS[direction, share]
            name = f"{direction.replace('_', ' ')} / best dense, {100 * share:.0f} %"
            yield from _row(section, name, limit, _ratios(section, direction, share, "best"))
    for share, most in BYTES.items():
        sizes = [
            (c["bytes_per_weight"] / c["dense_bytes_per_weight"], f"{c['pattern']} {_shape(c)}")
            for c in section["costs"]
            if c["pattern"] in ("2:4T", "4:8T") and density(c["pattern"]) == share
        ]
        if sizes:
            worst = max(sizes)
            yield {
                "target": "bytes of a stream / dense, 2:4 and 4:8",
                "section": section["title"],
                "limit": most,
                "aim": most,
                "at_least": False,
                "median": statistics.median(size for size, _ in sizes),
                "worst": worst[0],
                "worst_at": worst[1],
                "met": worst[0] <= most,
                "median_met": statistics.median(size for size, _ in sizes) <= most,
            }


def _ratios(
    section: dict[str, Any], direction: Direction, share: float, against: str
) -> list[tuple[float, str]]:
    return [
        (
            parts["ratios"][against]["wall"]["median"],
            f"{name} {_shape(case)}, {case['tokens']} tokens",
        )
        for case in section["cases"]
        if case["direction"] == direction and case["tokens"] >= LEAST_TOKENS
        for name, parts in case["patterns"].items()
        if density(name) == share
    ]


def _row(
    section: dict[str, Any], target: str, limit: Limit, found: list[tuple[float, str]]
) -> Iterator[dict[str, Any]]:
    if not found:
        return
    median = statistics.median(value for value, _ in found)
    worst, where = min(found)
    yield {
        "target": target,
        "section": section["title"],
        "limit": limit.least,
        "aim": limit.aim,
        "at_least": True,
        "median": median,
        "worst": worst,
        "worst_at": where,
        "met": worst >= limit.least,
        "median_met": median >= limit.least,
    }


def _shape(entry: dict[str, Any]) -> str:
    return f"{entry['in']}x{entry['out']}"
