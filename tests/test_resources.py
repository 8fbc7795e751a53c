"""Memory and threads: what a call allocates, and that others run meanwhile."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from transposable import find_mask

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="uses glibc and /proc/self")


def kibibytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise AssertionError(f"no {field} in /proc/self/status")


@LINUX
@pytest.mark.parametrize("pattern", ["2:4T", "4:8T", "16:32T"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_memory_is_input_and_output(dtype: torch.dtype, pattern: str) -> None:
    """Peak below 1.3 times (input + output): nothing else grows with the matrix."""
    weight = torch.randn(2048, 4096).to(dtype)
    find_mask(weight[:64], pattern)  # threads and code are there
    ctypes.CDLL(None).malloc_trim(0)  # what is free is not resident, so new memory shows
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts from here
    before = kibibytes("VmRSS")
    mask = find_mask(weight, pattern, threads=2)
    extra = 1024 * (kibibytes("VmHWM") - before)
    output = mask.tensor.numel()
    assert extra >= output // 2  # the measurement sees the mask
    assert weight.nbytes + extra < 1.3 * (weight.nbytes + output)


def test_other_python_threads_run_meanwhile() -> None:
    """The GIL is released: a thread ticks during one call, however long that has to be."""
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        rows, seconds = 512, 0.0
        while seconds < 0.1:
            weight = torch.randn(rows, 2048)
            start, before = time.perf_counter(), ticks[0]
            find_mask(weight, "32:64T")
            seconds, during = time.perf_counter() - start, ticks[0] - before
            rows *= 2
    finally:
        stop.set()
        thread.join()
    assert during >= 5, (seconds, during)


def test_calls_from_several_python_threads() -> None:
    weights = [torch.randn(256, 256) for _ in range(6)]
    expected = [find_mask(weight, "4:8T") for weight in weights]
    found: dict[int, object] = {}

    def work(index: int) -> None:
        found[index] = find_mask(weights[index], "4:8T", threads=2)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(weights))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(weights))] == expected
