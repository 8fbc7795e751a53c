"""From names to decisions: include and exclude patterns, layouts and groups over the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from transposable.errors import LayoutError, SelectionError
from transposable.export.policy import (
    NO_WEIGHT,
    NORM,
    Tensor,
    default_layout,
    default_reasons,
    impossible,
    stored_in_out,
)
from transposable.export.record import Reading
from transposable.layout import Layout, LayoutName
from transposable.names import matcher
from transposable.pattern import Pattern


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a tensor: pruned as ``reading`` says, or left dense for ``reason``.

    ``note`` says what is particular about the reading: weights stored [in, out], an inclusion
    against the policy.
    """

    tensor: Tensor
    reading: Reading | None
    reason: str = ""
    note: str = ""

    @property
    def pruned(self) -> bool:
        """Whether the tensor is pruned."""
        return self.reading is not None


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user asked for; every field is a sequence of texts as given on the command line.

    Attributes:
        include: names to prune, and nothing else; each a glob, or "re:" and a regular expression.
        exclude: names to leave dense; wins over include.
        layouts: "NAME" or "GLOB=NAME", with NAME one of linear, conv, stacked.
        groups: "GLOB=G": the groups of grouped convolutions.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    layouts: Sequence[str] = ()
    groups: Sequence[str] = ()


def select(
    tensors: Sequence[Tensor],
    config: dict[str, Any],
    pattern: Pattern,
    choice: Choice | None = None,
) -> list[Decision]:
    """Decide for every tensor of a model, in the given order.

    Without ``include`` the policy decides (see docs/cli.md). With it, exactly the matching tensors
    are pruned, against the policy if need be; what cannot be pruned at all (biases, other dtypes)
    stays dense, and norms and buffers do unless named in full. ``exclude`` wins.

    Raises:
        SelectionError: if a pattern matches no tensor, or nothing is left to prune.
        LayoutError: if a layout or groups do not fit a tensor they were asked for.

    Example:
        >>> tensors = [Tensor("a.weight", "F32", (8, 8)), Tensor("a.bias", "F32", (8,))]
        >>> [d.reason for d in select(tensors, {}, Pattern.parse("2:4T"))]
        ['', 'bias']
    """
    choice = choice or Choice()
    names = [tensor.name for tensor in tensors]
    include = _matches(choice.include, names, "--include")
    exclude = _matches(choice.exclude, names, "--exclude")
    layouts = _layouts(choice.layouts, tensors)
    groups = _values(choice.groups, names, "--groups")
    reasons = default_reasons(tensors, config)
    in_out = {} if pattern.transposable else stored_in_out(tensors, config)
    _check_possible(choice.include, tensors)
    decisions = []
    for tensor in tensors:
        name = tensor.name
        reason = impossible(tensor)
        note = ""
        if reason is None and name in exclude:
            reason = f"--exclude {exclude[name]}"
        elif reason is None and choice.include:
            if name not in include:
                reason = "not in --include"
            elif reasons.get(name, "").startswith((NORM, NO_WEIGHT)) and name != include[name]:
                reason = f"{reasons[name]}; --include its full name to prune it"
            elif name in reasons:
                note = f"{reasons[name]}; pruned because of --include {include[name]}"
        elif reason is None and name not in groups:
            reason = reasons.get(name)
        if reason is not None:
            decisions.append(Decision(tensor, None, reason))
            continue
        reading = _reading(tensor, pattern, layouts.get(name), groups.get(name), name in in_out)
        if reading.transposed:
            note = "; ".join(filter(None, (in_out[name], note)))
        decisions.append(Decision(tensor, reading, "", note))
    if not any(decision.pruned for decision in decisions):
        raise SelectionError(
            f"select: of {len(tensors)} tensors none is left to prune "
            f"({_summary(decisions)}); name the tensors to prune with --include; "
            "'transposable inspect' lists all with the reasons"
        )
    return decisions


def _reading(
    tensor: Tensor, pattern: Pattern, layout: str | None, groups: str | None, in_out: bool
) -> Reading:
    name = layout or ("conv" if groups else default_layout(tensor))
    if groups is not None and not (groups.isascii() and groups.isdigit()):
        raise LayoutError(f"--groups: received {groups!r}; write GLOB=G with an integer G >= 1")
    count = int(groups) if groups else 1
    read = _layout(name, count)
    read.check(tensor.shape, f"select (tensor {tensor.name!r})")
    return Reading(pattern, read, in_out and name != "conv" and pattern.structure != "unstructured")


def _matches(patterns: Sequence[str], names: Sequence[str], option: str) -> dict[str, str]:
    """Name -> the first pattern that matches it."""
    found: dict[str, str] = {}
    for pattern in patterns:
        predicate = matcher(pattern, option)
        matched = [name for name in names if predicate(name)]
        if not matched:
            raise SelectionError(
                f"{option}: {pattern!r} matches none of the {len(names)} tensors, such as "
                f"{', '.join(names[:3])}; 'transposable inspect' lists all names"
            )
        for name in matched:
            found.setdefault(name, pattern)
    return found


def _check_possible(include: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """An include pattern that selects only what can never be pruned selects nothing."""
    for pattern in include:
        predicate = matcher(pattern, "--include")
        reasons = [impossible(tensor) for tensor in tensors if predicate(tensor.name)]
        if None not in reasons:
            raise SelectionError(
                f"--include: {pattern!r} matches {len(reasons)} tensors, none of which can be "
                f"pruned ({reasons[0]}); name tensors of two or more dimensions in a float dtype"
            )


def _values(settings: Sequence[str], names: Sequence[str], option: str) -> dict[str, str]:
    """Name -> value, of settings "GLOB=VALUE"; later ones win."""
    found = {}
    for setting in settings:
        pattern, equals, value = setting.rpartition("=")
        if not equals:
            raise SelectionError(
                f"{option}: received {setting!r}; write GLOB={setting}, with the names it is for"
            )
        found.update(dict.fromkeys(_matches([pattern], names, option), value))
    return found


def _layouts(settings: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, str]:
    """As :func:`_values`; a bare "NAME" is for every tensor whose dimensions fit it."""
    found: dict[str, str] = {}
    for setting in settings:
        if "=" in setting:
            found |= _values([setting], [tensor.name for tensor in tensors], "--layout")
            continue
        read = _layout(setting, 1)
        for tensor in tensors:
            try:
                read.check(tensor.shape, "--layout")
            except LayoutError:
                continue
            found[tensor.name] = setting
    return found


def _layout(name: str, groups: int) -> Layout:
    for known in get_args(LayoutName):
        if name == known:
            return Layout(known, groups)
    raise LayoutError(
        f"--layout: received {name!r}; the layouts are {', '.join(get_args(LayoutName))}; "
        "write NAME or GLOB=NAME"
    )


def _summary(decisions: Sequence[Decision]) -> str:
    counts: dict[str, int] = {}
    for decision in decisions:
        counts[decision.reason] = counts.get(decision.reason, 0) + 1
    listed = sorted(counts.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{count} {reason}" for reason, count in listed) or "the file is empty"
