"""Item: how far unstructured sparsity is from N:M (the equation for P, figure 5a)."""

from __future__ import annotations

from typing import Any, Final

from experiments.paper.common import Session
from experiments.runs import machine
from transposable.analysis import feasibility, simulate, transition

ITEM: Final = "transition"
GROUPS: Final = ((2, 4), (4, 8), (8, 16), (16, 32), (32, 64))
SHARES: Final = tuple(round(0.02 * step, 2) for step in range(51))
DRAWN: Final = (0.3, 0.4, 0.5, 0.6, 0.7)
DRAWS: Final = 200_000
TILES: Final = ("2:4T", "4:8T")


def run(session: Session, draws: int = DRAWS) -> None:
    curves = [
        {
            "n": n,
            "m": m,
            "p": [feasibility(rho, n, m) for rho in SHARES],
            "middle": transition(n, m).middle,
            "width": transition(n, m).width,
            "limit": transition(n, m).limit,
            "drawn": [drawn(f"{n}:{m}", rho, draws) for rho in DRAWN],
        }
        for n, m in GROUPS
    ]
    tiles = [
        {"pattern": pattern, "drawn": [drawn(pattern, rho, draws) for rho in (*DRAWN, 0.8, 0.9)]}
        for pattern in TILES
    ]
    session.save(
        ITEM, {"shares": list(SHARES), "curves": curves, "tiles": tiles, "machine": machine()}
    )


def drawn(pattern: str, rho: float, draws: int) -> dict[str, Any]:
    """Groups, or whole tiles, drawn at random."""
    found = simulate(rho, pattern, draws=draws)
    return {
        "rho": rho,
        "draws": found.draws,
        "estimate": found.estimate,
        "standard_error": found.standard_error,
        "expected": found.expected,
        "deviation": found.deviation,
    }
