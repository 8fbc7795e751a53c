"""What the figures of a study say, in sentences."""

from __future__ import annotations

from transposable.analysis.results import Retention, Total
from transposable.analysis.study import Study
from transposable.pattern import Pattern


def findings(found: Study) -> list[str]:
    """Three to six sentences: best and worst pattern, the price of the second axis, proofs.

    Example:
        >>> from torch import nn
        >>> from transposable.analysis.study import study
        >>> findings(study(nn.ReLU(), ["2:4T"]))
        ['There is no layer to analyse: no tensor of this model can be pruned by default.']
    """
    kept = found.retention
    if not kept.layers:
        if kept.failed:
            return ["No layer could be analysed: the weights of every one hold NaN."]
        return ["There is no layer to analyse: no tensor of this model can be pruned by default."]
    totals = {pattern: kept.total(pattern) for pattern in kept.patterns}
    known = {p: t.relative for p, t in totals.items() if t.relative is not None}
    lines = []
    if known:
        patterned = [p for p in known if p.structure != "unstructured"] or list(known)
        best, least = (pick(patterned, key=lambda p: known[p]) for pick in (max, min))
        worst = f", {least} {_percent(known[least])}" if least != best else ""
        lines.append(
            f"{best} keeps {_percent(known[best])} of what the best unstructured mask of the same "
            f"size keeps{worst}."
        )
        lines += _second_axis(known) + _four_eight(known) + _weakest(kept, totals)
    lines += _proofs(totals)
    infinite = max((total.infinite for total in totals.values()), default=0)
    if infinite:
        lines.append(
            f"Of {len(kept.layers):,} layers {infinite:,} {'holds' if infinite == 1 else 'hold'} "
            "infinite scores, whose shares mean nothing; they are in no total."
        )
    return lines


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(difference: float) -> str:
    return f"{100 * abs(difference):.1f} points {'less' if difference < 0 else 'more'}"


def _second_axis(known: dict[Pattern, float]) -> list[str]:
    pairs = [(p, Pattern(p.n, p.m)) for p in known if p.transposable and Pattern(p.n, p.m) in known]
    if not pairs:
        return []
    prices = [f"{p} keeps {_points(known[p] - known[plain])} than {plain}" for p, plain in pairs]
    return [f"The price of the second axis: {'; '.join(prices)}."]


def _four_eight(known: dict[Pattern, float]) -> list[str]:
    """The paper's question: can 4:8T stand in for 2:4?"""
    wide, narrow = Pattern(4, 8, "transposable"), Pattern(2, 4)
    if wide not in known or narrow not in known:
        return []
    return [
        f"In place of 2:4, 4:8T keeps {_points(known[wide] - known[narrow])}, and its mask serves "
        "both passes."
    ]


def _weakest(kept: Retention, totals: dict[Pattern, Total]) -> list[str]:
    if len(kept.layers) < 2:
        return []
    pattern = next((p for p in kept.patterns if p.transposable), kept.patterns[0])
    total = totals[pattern]
    if total.least is None:
        return []
    name = total.worst or "(no name)"
    name = name if len(name) <= 90 else f"{name[:60]} ... {name[-20:]}"
    return [
        f"Under {pattern} the layer that keeps the least is {name}, with {_percent(total.least)}."
    ]


def _proofs(totals: dict[Pattern, Total]) -> list[str]:
    promised = sum(t.violations[axis] for t in totals.values() for axis in t.promised)
    groups = sum(t.groups[axis] for t in totals.values() for axis in t.promised)
    masks = sum(t.layers for t in totals.values())
    proved = sum(t.proved for t in totals.values())
    which = f"All {masks:,} masks are" if proved == masks else f"{proved:,} of {masks:,} masks are"
    return [
        f"{which} proved optimal; {promised:,} of {groups:,} groups violate what their pattern "
        "promises."
    ]
