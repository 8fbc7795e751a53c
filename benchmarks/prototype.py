"""An earlier prototype of the exact solver, built from its C++ source and timed in the same run."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transposable import Pattern

COMPILER = "g++"
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fopenmp", "-shared", "-fPIC")


class Unavailable(Exception):
    """Why something cannot be measured here; becomes a visible line of the report."""


@dataclass(slots=True)
class Build:
    """A build under way; :meth:`finish` waits for it."""

    process: subprocess.Popen[str]
    library: Path

    def finish(self) -> Prototype:
        """The loaded prototype.

        Raises:
            Unavailable: if it does not compile or has no ``exact_solve``.
        """
        _, errors = self.process.communicate()
        if self.process.returncode:
            first = next((line for line in errors.splitlines() if "error" in line), "no message")
            raise Unavailable(f"{COMPILER} could not compile it on this machine: {first.strip()}")
        try:
            return Prototype(ctypes.CDLL(str(self.library)).exact_solve)
        except (OSError, AttributeError) as error:
            raise Unavailable(f"its library does not offer exact_solve ({error})") from error

    def cancel(self) -> None:
        """Stop the compiler if it is still running."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def start_build(source: Path, folder: Path) -> Build:
    """Start to compile the prototype into ``folder``.

    Raises:
        Unavailable: if the source or the compiler is missing.
    """
    if not source.is_file():
        raise Unavailable(f"no file {source}; pass --prototype PATH to its C++ source")
    if shutil.which(COMPILER) is None:
        raise Unavailable(f"no compiler {COMPILER} on this machine")
    library = folder / "libprototype.so"
    command = [COMPILER, *FLAGS, str(source), "-o", str(library)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return Build(process, library)


class Prototype:
    """``int exact_solve(W, R, C, M, N, mask, vout, threads, stats)`` on float32 magnitudes."""

    def __init__(self, function: Any) -> None:
        pointer, long, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
        function.argtypes = (
            [pointer, long, long] + [integer] * 2 + [pointer] * 2 + [integer, pointer]
        )
        function.restype = integer
        self._function = function
        self._stats = (ctypes.c_double * 32)()

    def solve(
        self, weight: torch.Tensor, pattern: Pattern, threads: int, mask: torch.Tensor
    ) -> torch.Tensor:
        """Fill ``mask`` (uint8 or bool, contiguous) and return it.

        Raises:
            Unavailable: if the prototype refuses this pattern or shape.
        """
        rows, cols = weight.shape
        code = self._function(
            weight.data_ptr(),
            rows,
            cols,
            pattern.m,
            pattern.n,
            mask.data_ptr(),
            None,
            threads,
            ctypes.addressof(self._stats),
        )
        if code:
            raise Unavailable(
                f"it does not take {pattern} on {rows}x{cols} (its status is {code}; it needs "
                f"columns in multiples of {32 * pattern.m})"
            )
        return mask
