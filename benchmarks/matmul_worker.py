"""A process for each number of threads: OpenBLAS reads its settings when it is loaded."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.gate import GateError
from benchmarks.isolated import ISA_VARIABLE
from benchmarks.matmul_cases import Job, measure

_OPENBLAS: Final = "OPENBLAS_"


class WorkerError(Exception):
    """The measuring process ended without results."""


def environment(job: Job) -> dict[str, str]:
    """What the process is started under.

    Of what is inherited, OpenBLAS' own variables are left out: one that chooses its kernels may be
    set for reproducible results, and would halve the speed of a peer.
    """
    threads = str(job.threads)
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(_OPENBLAS)}
    settings = {
        **inherited,
        # The child finds the same packages, wherever this process was started.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "VECLIB_MAXIMUM_THREADS": threads,
        # Its threads stop spinning 2^22 cycles (a millisecond) after a product: within the pause.
        "OPENBLAS_THREAD_TIMEOUT": "22",
    }
    if job.isa is not None:
        settings[ISA_VARIABLE] = job.isa
    return settings


def run(job: Job) -> dict[str, Any]:
    """Measure a job in a new process; its progress goes to stderr.

    Raises:
        GateError: if its gate fails.
        WorkerError: if it ends otherwise without results.
    """
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.matmul_worker"],
        input=json.dumps(job.as_dict()),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(job),
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
    )
    if process.returncode:
        raise WorkerError(f"{job.title}: the process ended with status {process.returncode}")
    answer: dict[str, Any] = json.loads(process.stdout)
    if "gate_failure" in answer:
        raise GateError(answer["gate_failure"])
    return answer


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _openblas_kernels() -> str | None:
    """The processor whose kernels the OpenBLAS in numpy's wheel runs; None if it does not say."""
    folder = Path(np.__file__).resolve().parent.parent / "numpy.libs"
    for library in folder.glob("libscipy_openblas*"):
        for ending in ("64_", ""):
            name = getattr(ctypes.CDLL(str(library)), f"scipy_openblas_get_corename{ending}", None)
            if name is not None:
                name.restype = ctypes.c_char_p
                return str(name().decode())
    return None


def _serve() -> None:
    job = Job.from_dict(json.load(sys.stdin))
    try:
        answer = {**measure(job, say=_say), "openblas_kernels": _openblas_kernels()}
    except GateError as error:
        answer = {"gate_failure": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _serve()
