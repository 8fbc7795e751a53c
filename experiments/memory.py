"""The most memory that a part of a program takes above what the process held before.

Linux only: elsewhere there is no peak that can be set back, and nothing is measured. The peak of
getrusage cannot be: it includes loading, and a started process even inherits its parent's.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start() -> int | None:
    """Bytes that the process holds now, from where on the peak is taken; None if it cannot be."""
    if not RESET.exists():
        return None
    gc.collect()
    # What loading freed goes back to the system, or using it again would not be seen.
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    RESET.write_text("5", encoding="ascii")
    return _read("VmRSS")


def above(started: int | None) -> int | None:
    """Bytes of the peak since :func:`start`, above what it returned."""
    return None if started is None else max(0, _read("VmHWM") - started)


def _read(name: str) -> int:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise RuntimeError(f"memory: {STATUS} holds no {name}")
