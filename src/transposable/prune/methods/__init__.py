"""Pruning methods by name; each is an immutable configuration object."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Final

from transposable.errors import MethodError
from transposable.prune.methods.adaprune import AdaPrune
from transposable.prune.methods.alps import ALPS
from transposable.prune.methods.base import Method, Pruned
from transposable.prune.methods.mask_only import Magnitude, Wanda
from transposable.prune.methods.published import PublishedAdaPrune
from transposable.prune.methods.sparsegpt import SparseGPT
from transposable.prune.scores import Scores, make_scores

METHODS: Final[dict[str, type[Method]]] = {
    method.name: method
    for method in (Magnitude, Wanda, SparseGPT, ALPS, AdaPrune, PublishedAdaPrune)
}

__all__ = [
    "ALPS",
    "METHODS",
    "AdaPrune",
    "Magnitude",
    "Method",
    "Pruned",
    "PublishedAdaPrune",
    "SparseGPT",
    "Wanda",
    "make_method",
]


def make_method(method: str | Method, scores: str | Scores | None = None) -> Method:
    """A method by name, or the object itself; with other scores if it takes any.

    Raises:
        MethodError: if there is no method of this name, or it takes no scores.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise MethodError(
                f"prune_model: received method {method!r}; the methods are "
                f"{', '.join(map(repr, METHODS))}, or an object of one of these classes"
            )
        method = METHODS[method]()
    if not isinstance(method, Method):
        raise MethodError(
            f"prune_model: received method={method!r}; give a name, one of "
            f"{', '.join(map(repr, METHODS))}, or an object such as AdaPrune(ridge=1e-3)"
        )
    if scores is None:
        return method
    make_scores(scores)
    settings: Any = method
    if "scores" not in {field.name for field in fields(settings)}:
        raise MethodError(
            f"prune_model: received scores={scores!r} with method {method.name!r}, which has "
            "scores of its own; leave scores out, or use method='adaprune'"
        )
    chosen: Method = replace(settings, scores=scores)
    return chosen
