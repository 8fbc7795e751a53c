"""Measurements that need a process of their own: instruction-set paths, and peak memory.

As a command (``python -m benchmarks.isolated``) this is the measured process; :class:`Worker` and
:class:`PeakMemory` are what the benchmark talks to it with, in lines of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.gate import Candidate, GateError, GateReport, check_timed
from benchmarks.harness import Sample, timed
from benchmarks.inputs import gaussian
from benchmarks.prototype import Unavailable
from transposable import Pattern, _core

ISA_VARIABLE: Final = "TRANSPOSABLE_ISA"
ISA_PATHS: Final = ("avx512", "avx2", "baseline")


class Worker:
    """A process whose native core runs one instruction-set path, timing on request."""

    def __init__(self, path: str, size: int, seed: int) -> None:
        self.path = path
        self._process = _start(["isa", str(size), str(seed)], {ISA_VARIABLE: path})

    def ready(self) -> None:
        """Wait until it can be asked.

        Raises:
            Unavailable: if the path cannot be run here, or if the core does not confirm it.
        """
        taken = self._receive()["isa"]
        if taken != self.path:
            raise Unavailable(
                f"{ISA_VARIABLE}={self.path}: the native core does not say which path it takes"
                if taken is None
                else f"{ISA_VARIABLE}={self.path}: the native core took {taken!r} instead"
            )

    def check(self, pattern: str) -> None:
        """Certify a crop of this path's mask of the timed matrix.

        Raises:
            GateError: if it is not proved optimal.
        """
        self._send({"check": pattern})
        failure = self._receive()["failure"]
        if failure is not None:
            raise GateError(f"{ISA_VARIABLE}={self.path}: {failure}")

    def sample(self, pattern: str) -> Sample:
        """One timed call of find_mask, one thread."""
        self._send({"time": pattern})
        answer = self._receive()
        return Sample(answer["wall"], answer["cpu"])

    def close(self) -> None:
        """End the process."""
        _close(self._process)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(f"{ISA_VARIABLE}={self.path}: {_last_words(self._process)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class PeakMemory:
    """Growth of the resident set over input + output of one call, in a fresh process."""

    def __init__(self, pattern: str, size: int, seed: int) -> None:
        self._process = _start(["memory", str(size), str(seed), pattern], {})

    def result(self) -> dict[str, Any]:
        """Wait for it: growth_bytes, input_output_bytes and their ratio.

        Raises:
            Unavailable: where the system does not report it.
        """
        output, errors = self._process.communicate()
        if self._process.returncode:
            raise Unavailable(errors.strip().splitlines()[-1])
        answer: dict[str, Any] = json.loads(output)
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        return answer

    def close(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        _close(self._process)


def _close(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()  # the end of its input ends the process
    process.wait()


def _start(arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.isolated", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The child finds the same packages, wherever this process was started.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        cwd=Path(__file__).resolve().parent.parent,
    )


def _last_words(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate()
    lines = errors.strip().splitlines()
    return lines[-1] if lines else f"the process ended with status {process.returncode}"


def _serve_isa(size: int, seed: int) -> None:
    torch.set_num_threads(1)
    matrix, candidate = gaussian(size, seed), Candidate()
    _answer({"isa": _isa_taken()})
    for line in sys.stdin:
        request = json.loads(line)
        if "check" in request:
            failure = None
            try:
                pattern = Pattern.parse(request["check"])
                check_timed(candidate, matrix, pattern, 1, "Gaussian", GateReport())
            except GateError as error:
                failure = str(error)
            _answer({"failure": failure})
        else:
            pattern = Pattern.parse(request["time"])
            sample = timed(partial(candidate.find, matrix, pattern, threads=1))()
            _answer({"wall": sample.wall, "cpu": sample.cpu})


def _isa_taken() -> str | None:
    """What the core says it runs; None if it does not say."""
    report = getattr(_core, "isa", None)
    return None if report is None else str(report())


def _serve_memory(size: int, seed: int, pattern_text: str) -> None:
    if not Path("/proc/self/status").exists():
        _answer({"unavailable": "peak memory is read from /proc, which this system lacks"})
        return
    torch.set_num_threads(1)
    pattern, candidate = Pattern.parse(pattern_text), Candidate()
    candidate.find(gaussian(8 * pattern.m, seed), pattern, threads=1)  # loads what is lazy
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts over at VmRSS
    except OSError as error:
        _answer({"unavailable": f"the peak of the imports cannot be reset ({error})"})
        return
    before = _status_bytes("VmRSS")
    matrix = gaussian(size, seed)
    mask = candidate.find(matrix, pattern, threads=1)
    # VmHWM is of this process alone; getrusage would inherit the parent's peak.
    growth = _status_bytes("VmHWM") - before
    given = matrix.nbytes + mask.tensor.nbytes
    _answer({"growth_bytes": growth, "input_output_bytes": given, "ratio": growth / given})


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "isa":
        _serve_isa(int(sys.argv[2]), int(sys.argv[3]))
    else:
        _serve_memory(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
