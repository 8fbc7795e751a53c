"""A process for each number of threads: OpenBLAS reads its settings when it is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.gate import GateError
from benchmarks.isolated import ISA_VARIABLE
from benchmarks.machine import describe
from benchmarks.matmul_cases import Job, measure

CORE_VARIABLE: Final = "OPENBLAS_CORETYPE"


class WorkerError(Exception):
    """The measuring process ended without results."""


def environment(job: Job) -> dict[str, str]:
    """What the process is started under, besides what is inherited.

    Some builds of OpenBLAS do not know newer AMD processors and take their AVX2 kernels, at half
    the speed; where AVX-512 exists they are told to use it, since they are here to be beaten.
    """
    threads = str(job.threads)
    settings = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "VECLIB_MAXIMUM_THREADS": threads,
        # Its threads stop spinning 2^22 cycles (a millisecond) after a product: within the pause.
        "OPENBLAS_THREAD_TIMEOUT": "22",
    }
    if CORE_VARIABLE not in os.environ and "avx512bw" in describe()["instruction_sets"]:
        settings[CORE_VARIABLE] = "SkylakeX"
    if job.isa is not None:
        settings[ISA_VARIABLE] = job.isa
    return settings


def run(job: Job) -> dict[str, Any]:
    """Measure a job in a new process; its progress goes to stderr.

    Raises:
        GateError: if its gate fails.
        WorkerError: if it ends otherwise without results.
    """
    settings = environment(job)
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.matmul_worker"],
        input=json.dumps(job.as_dict()),
        stdout=subprocess.PIPE,
        text=True,
        # The child finds the same packages, wherever this process was started.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **settings},
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
    )
    if process.returncode:
        raise WorkerError(f"{job.title}: the process ended with status {process.returncode}")
    answer: dict[str, Any] = json.loads(process.stdout)
    if "gate_failure" in answer:
        raise GateError(answer["gate_failure"])
    return {**answer, "openblas_core": settings.get(CORE_VARIABLE, os.environ.get(CORE_VARIABLE))}


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _serve() -> None:
    job = Job.from_dict(json.load(sys.stdin))
    try:
        answer = measure(job, say=_say)
    except GateError as error:
        answer = {"gate_failure": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _serve()
