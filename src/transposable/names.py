"""Names of modules and tensors, selected by globs and regular expressions."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from transposable.errors import SelectionError


def matcher(pattern: str, option: str) -> Callable[[str], bool]:
    """A predicate on names: a glob over the whole name, or "re:" and a regular expression.

    A glob may leave out a trailing ".weight"; a regular expression is searched anywhere in it.

    Raises:
        SelectionError: if the regular expression is none.

    Example:
        >>> matcher("layer1.*.conv1", "--include")("layer1.0.conv1.weight")
        True
        >>> matcher("re:conv[12]\\\\.", "--include")("layer1.0.conv2.weight")
        True
    """
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise SelectionError(
                f"{option}: {pattern!r} is no regular expression ({error}); escape special "
                "characters, or use a glob such as 'encoder.*'"
            ) from error
        return lambda name: expression.search(name) is not None
    return lambda name: (
        fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(name.removesuffix(".weight"), pattern)
    )
