"""What the figures are held against."""

from __future__ import annotations

from typing import Any, Final

LEAST_SIZE: Final = 4096
"""Below this side a call is mostly fixed cost, and no target is judged."""


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target that the results have a figure for: value, limit, and whether it is met."""
    judged = not results["quick"] and results["size"] >= LEAST_SIZE
    rows = []
    for pattern, parts in results["patterns"].items():
        for name, value, limit, at_least in _figures(parts):
            rows.append(
                {
                    "pattern": pattern,
                    "target": name,
                    "value": value,
                    "limit": limit,
                    "at_least": at_least,
                    "judged": judged,
                    "met": value >= limit if at_least else value <= limit,
                }
            )
    return rows


def _figures(parts: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    figures: list[tuple[str, float, float, bool]] = []

    def add(
        name: str, ratio: dict[str, float] | None, limit: float, at_least: bool = False
    ) -> None:
        if ratio is not None:
            figures.append((name, ratio["median"], limit, at_least))

    ratios = parts.get("speed", {}).get("ratios", {})
    add("CPU time / prototype's", ratios.get("prototype, cpu"), 1.0)
    add("two threads' speed-up", ratios.get("speed_up_2_threads"), 1.7, at_least=True)
    for name in ("int4 grid", "half zeros", "all equal"):
        add(f"{name} / Gaussian", ratios.get(f"{name} / Gaussian"), 3.0)
    add("bf16 / float32", ratios.get("bf16 / Gaussian"), 1.0)
    add("AVX2 / AVX-512", parts.get("paths", {}).get("ratios", {}).get("avx2"), 2.5)
    if parts.get("memory"):
        figures.append(("peak memory / (input + output)", parts["memory"]["ratio"], 1.3, False))
    return figures
