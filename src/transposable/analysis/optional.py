"""Packages of the extra "analyze", imported when a report is made."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from transposable.errors import DependencyError


def need(package: str, operation: str) -> Any:
    """The imported package.

    Raises:
        DependencyError: if it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise DependencyError(
            f"{operation}: the package {package!r} is needed and cannot be imported ({error}); "
            "install it with pip install 'transposable[analyze]'"
        ) from error
