"""The report as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from transposable._version import __version__
from transposable.analysis import plots
from transposable.analysis.diversity import Diversity
from transposable.analysis.findings import findings
from transposable.analysis.layers import Excluded
from transposable.analysis.optional import need
from transposable.analysis.plots import Drawing
from transposable.analysis.results import LayerRetention, Retention, Total
from transposable.analysis.study import Study
from transposable.feasibility import feasibility

MOST_ROWS: Final = 300
"""Layers in the page's table; those that lose the most, the JSON document has all."""

MOST_NAMES: Final = 12
"""Names listed for each reason why tensors are left out."""

MOST_DIGITS: Final = 13
"""Numbers of masks below 10 to this power are written out."""

_WHAT: Final = {
    "retention": "Kept of unstructured, by pattern",
    "layers": "Kept of unstructured, layer by layer",
    "tradeoff": "Kept of unstructured, against the freedom of the mask",
    "diversity": "Masks of a block, exact and by the paper",
    "feasibility": "Feasibility; circles: drawn groups",
}


def check() -> None:
    """Raise DependencyError if a package that the page needs is missing."""
    need("jinja2", "report")
    plots.check()


def render(found: Study, drawings: Sequence[Drawing] | None = None) -> str:
    """The page.

    Args:
        found: from :func:`transposable.analysis.study`.
        drawings: from ``draw``, if they are at hand.

    Returns:
        HTML, whose every name from the model is escaped. It refuses all network access by its own
        content security policy.

    Raises:
        DependencyError: if jinja2 or matplotlib is missing.

    Complexity: at most MOST_ROWS rows and a few plots, whatever the model.
    """
    jinja2 = need("jinja2", "report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent_text,
        "gap": gap_text,
        "seconds": seconds_text,
        "shape": shape_text,
        "count": lambda value: f"{value:,}",
    }
    folder = files("transposable.analysis") / "templates"
    text = {name: (folder / name).read_text("utf-8") for name in ("style.css", "script.js")}
    template = environment.from_string((folder / "report.html.j2").read_text("utf-8"))
    if drawings is None:
        drawings = plots.draw_all(found)
    kept = found.retention
    page: str = template.render(
        version=__version__,
        style=text["style.css"],
        script=text["script.js"],
        study=found,
        kept=kept,
        totals=[kept.total(pattern) for pattern in kept.patterns] if kept.layers else [],
        findings=findings(found),
        sampling=sampling_text(kept),
        scores=_SCORES[kept.scores],
        figures={
            drawing.name: {
                "alt": drawing.alt,
                "source": _data("image/svg+xml", drawing.svg),
                "caption": _WHAT[drawing.name],
            }
            for drawing in drawings
        },
        rows=worst_layers(kept),
        suffix=".weight" if all(one.name.endswith(".weight") for one in kept.layers) else "",
        with_zeros=any(one.zeros for one in kept.layers),
        left_out=_by_reason(kept.excluded),
        masks=_masks(found),
        axis=axis_text,
        diversities=list(zip(found.diversities, found.paper, strict=True)),
        feasible=_feasible(found),
        masks_number=_masks_number,
        power=_power,
        zero_share=_zero_share(kept),
    )
    return page


_SCORES: Final = {
    "l1": "magnitude |w|",
    "l2": "squared magnitude w\N{SUPERSCRIPT TWO}",
    "own": "scores of your own",
}


def worst_layers(found: Retention) -> list[LayerRetention]:
    """The layers of the table, in the model's order: all, or those that keep the least."""
    if len(found.layers) <= MOST_ROWS:
        return list(found.layers)

    def least(layer: LayerRetention) -> float:
        known = [one.relative for one in layer.kept if one.relative is not None]
        return min(known, default=-1.0)  # infinities are worth a look

    places = sorted(range(len(found.layers)), key=lambda i: (least(found.layers[i]), i))
    return [found.layers[i] for i in sorted(places[:MOST_ROWS])]


def sampling_text(found: Retention) -> str:
    """Which weights were looked at, in one sentence."""
    sampled = [layer for layer in found.layers if layer.sampled]
    if not sampled:
        return "Every weight of these layers was measured."
    share = 100 * found.measured / max(found.weights, 1)
    return (
        f"Sampled: {found.measured:,} of {found.weights:,} weights ({share:.3g} %) were measured, "
        f"in {len(sampled):,} of {len(found.layers):,} layers at most {found.sample:,} each, as "
        f"whole tiles drawn at random (seed {found.seed}); there, unstructured means the best mask "
        "of the same sample, and totals scale each layer up to its size."
    )


def percent_text(value: float | None, digits: int = 2) -> str:
    """A share in percent, "unknown" where infinities hide it."""
    return "unknown" if value is None else f"{100 * value:.{digits}f}"


def gap_text(gap: float) -> str:
    """A relative gap: "0" for a proved optimum up to rounding."""
    if math.isinf(gap):
        return "none known"
    return "0" if gap < 1e-6 else f"{gap:.1e}"


def seconds_text(seconds: float) -> str:
    """Milliseconds below a second, seconds above."""
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def shape_text(shape: Sequence[int]) -> str:
    """(384, 64) as "384 x 64", with a sign that is made for it."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape)) if shape else "scalar"


def axis_text(total: Total, axis: str) -> dict[str, Any]:
    """The violated groups along an axis: "0 of 96", and whether the pattern promised none."""
    name = axis if axis in total.violations else "all"
    if name == "all" and axis == "out":
        return {"text": "", "promised": False, "violations": 0}
    violations, groups = total.violations[name], total.groups[name]
    return {
        "text": f"{violations:,} of {groups:,}",
        "promised": name in total.promised,
        "violations": violations,
    }


def _masks_number(one: Diversity) -> dict[str, str]:
    """How many masks there are: every digit where there are few, and they are known."""
    if one.log10 < MOST_DIGITS and not one.error and one.method == "exact":
        return {"number": f"{one.count:,}", "exponent": ""}
    return _power(one.log10)


def _power(log10: float) -> dict[str, str]:
    """10^15.6 as mantissa and exponent, "4.0" and "15"; small numbers as they are."""
    if log10 < 6:
        number = 10**log10
        return {"number": f"{number:.3g}" if number < 100 else f"{number:,.0f}", "exponent": ""}
    exponent = math.floor(log10)
    mantissa = f"{10 ** (log10 - exponent):.2f}"
    return {"number": mantissa, "exponent": str(exponent)}


def _by_reason(excluded: Sequence[Excluded]) -> list[dict[str, Any]]:
    names: dict[str, list[str]] = {}
    for one in excluded:
        names.setdefault(one.reason, []).append(one.name)
    return [
        {
            "reason": reason,
            "count": len(found),
            "names": found[:MOST_NAMES],
            "more": max(len(found) - MOST_NAMES, 0),
        }
        for reason, found in names.items()
    ]


def _masks(found: Study) -> list[dict[str, Any]]:
    """The pictures of each layer, with the violations of its whole (sampled) mask."""
    layers = {layer.name: layer for layer in found.retention.layers}
    result: dict[str, dict[str, Any]] = {}
    for picture in found.pictures:
        layer = layers[picture.layer]
        place = found.retention.patterns.index(picture.pattern)
        one = layer.kept[place]
        lines = []
        for axis, name in (("in", "rows"), ("out", "columns")):
            if axis in one.violations:
                lines.append(f"{name}: {one.violations[axis]:,} of {one.groups[axis]:,}")
        entry = result.setdefault(picture.layer, {"layer": layer, "pictures": []})
        rows, cols = picture.kept.shape
        entry["pictures"].append(
            {
                "pattern": str(picture.pattern),
                "source": _data("image/png", plots.mask_picture(picture)),
                "lines": lines or ["no groups: weights anywhere"],
                "alt": f"{rows} x {cols} weights of the {picture.pattern} mask; violated groups: "
                f"{', '.join(lines) or 'none possible'}",
            }
        )
    return list(result.values())


def _feasible(found: Study) -> list[dict[str, Any]]:
    zeros = _zero_share(found.retention)
    return [
        {
            "name": f"{step.transition.n}:{step.transition.m}",
            "step": step.transition,
            "now": None
            if zeros is None
            else feasibility(zeros, step.transition.n, step.transition.m),
            "drawn": step.drawn[1],
        }
        for step in found.steps
    ]


def _zero_share(found: Retention) -> float | None:
    """Share of the measured weights that is zero; None for no weights."""
    return sum(layer.zeros for layer in found.layers) / found.measured if found.measured else None


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
