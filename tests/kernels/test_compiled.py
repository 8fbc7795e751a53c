"""Kernels compile for sm_80 and sm_90 without a GPU, and keep their numbers in registers.

By default a choice that takes some seconds; TRANSPOSABLE_ALL_KERNELS=1 compiles every one.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from compiled import resources

from transposable.kernels import SIDES, bound, exact, row_wise, search, walk
from transposable.kernels.bound import device as bound_device
from transposable.kernels.exact import device as exact_device
from transposable.kernels.exact import four
from transposable.kernels.row_wise import device as row_wise_device
from transposable.kernels.search import device as search_device
from transposable.kernels.walk import device as walk_device

Case = tuple[str, Any, int, dict[str, Any]]
CHOICE = (
    "two_of_four-4-sm_90",
    "wave-8-sm_90",
    "narrow-8-sm_90",
    "wide-8-sm_80",
    "keep-8-sm_80",
    "row_wise-8-sm_90",
    "search-8-sm_80",
)


def _cases(m: int, kind: str, *, magnitude: bool, prices: bool) -> list[Case]:
    """Name, kernel, warps and constants of every kernel, as they are launched."""
    one = exact.SCHEDULES[m]
    score = {"M": m, "KIND": kind, "MAGNITUDE": magnitude}
    priced = {**score, "PRICES": prices}
    rounds = {"ROUNDS": one.rounds, "STEPS": one.steps}
    groups, warps = row_wise.SCHEDULES[m]
    walked, walk_warps = walk.SCHEDULES[m]
    searched, search_warps = search.SCHEDULES[m]
    checked, bound_warps = bound.SCHEDULES[m]
    given = {"M": m, "T": checked, "MAGNITUDE": magnitude}
    enumerated = [
        (name, four.four, warps, {**priced, "N": n, "T": count})
        for count, warps in filter(None, [one.enumerated])
        for name, n in (("one_of_four", 1), ("two_of_four", 2), ("three_of_four", 3))
    ]
    for *_, constants in enumerated:
        del constants["M"]
    return [
        *enumerated,
        ("wave", exact_device.wave, one.wave[1], {**priced, **rounds, "T": one.wave[0]}),
        *(
            (name, exact_device.paths, size[1], {**priced, "T": size[0], "WIDE": name == "wide"})
            for name, size in (("narrow", one.narrow), ("wide", one.wide))
        ),
        ("row_wise", row_wise_device.row_wise, warps, {**score, "T": groups}),
        *(
            (how, walk_device.walk, walk_warps, {**score, "T": walked, "HOW": how})
            for how in ("keep", "prune", "refill")
        ),
        *(
            (
                name,
                search_device.search,
                search_warps,
                {**score, "T": searched, "REPAIR": repair, "SWEEP": sweep},
            )
            for name, repair, sweep in (
                ("search", True, True),
                ("repair", True, False),
                ("sweep", False, True),
            )
        ),
        ("bound", bound_device.bound, bound_warps, given),
    ]


def _all() -> list[Any]:
    every = os.environ.get("TRANSPOSABLE_ALL_KERNELS") == "1"
    chosen = []
    for m in SIDES:
        for capability in (80, 90):
            # The signed kernels with prices are the larger ones.
            for name, kernel, warps, constants in _cases(
                m, "bfloat16" if capability == 90 else "float32", magnitude=False, prices=True
            ):
                title = f"{name}-{m}-sm_{capability}"
                if every or title in CHOICE:
                    chosen.append(pytest.param(kernel, capability, warps, constants, id=title))
    return chosen


@pytest.fixture(autouse=True)
def own_cache_of_triton(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(("kernel", "capability", "warps", "constants"), _all())
def test_registers(kernel: Any, capability: int, warps: int, constants: dict[str, Any]) -> None:
    needs = resources(kernel, capability, warps, **constants)
    assert needs.spilled == 0
    # 255 is what there is; a kernel that needs it all is about to spill.
    assert needs.registers <= 250
