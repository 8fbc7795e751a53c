"""What a figure was measured on: processor, memory and versions; nothing that names a host."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "scipy", "ortools", "networkx")
_FLAGS = ("avx2", "avx512bw", "asimd")


def describe() -> dict[str, Any]:
    """Processor, usable cores, memory, system and versions."""
    from transposable import __version__

    return {
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "instruction_sets": [flag for flag in _FLAGS if flag in _cpu_flags()],
        "cores": usable_cores(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "transposable": __version__,
        **{name: _version(name) for name in PACKAGES},
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sentence(machine: dict[str, Any]) -> str:
    """The description in one line, for the head of a table."""
    cores = machine["cores"]
    memory = "" if machine["memory_gb"] is None else f", {machine['memory_gb']:.0f} GB"
    sets = "/".join(machine["instruction_sets"]) or "no vector extension named"
    return (
        f"{machine['cpu']} ({sets}), {cores} core{'s' if cores != 1 else ''}{memory}; "
        f"Python {machine['python']}, torch {machine['torch']}"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_field(name: str) -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ""
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _cpu_flags() -> set[str]:
    return set((_cpu_field("flags") or _cpu_field("Features")).split())


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return None
