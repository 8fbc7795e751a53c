"""What the machine has: GPUs, their capability, the libraries; asked late, and of torch only."""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from typing import Final

import torch

from transposable._version import __version__

OLDEST: Final = (8, 0)
"""Ampere, the first with sparse tensor cores."""

_DRIVER_FILES: Final = (Path("/sys/module/nvidia/version"), Path("/proc/driver/nvidia/version"))


def why_no_gpu(device: torch.device) -> str | None:
    """Why a device has no sparse tensor cores, or None if it has.

    Example:
        >>> why_no_gpu(torch.device("mps"))
        'device mps: sparse tensor cores are those of NVIDIA GPUs'
    """
    if device.type != "cuda":
        return f"device {device}: sparse tensor cores are those of NVIDIA GPUs"
    if not has_cuda():
        return "no CUDA: torch sees no GPU here (torch.cuda.is_available() is False)"
    if torch.version.hip is not None:
        return "ROCm: the sparse kernels are for NVIDIA GPUs"
    if (device.index or 0) >= torch.cuda.device_count():
        return f"device {device}: torch sees {torch.cuda.device_count()} GPU(s)"
    capability = capability_of(device)
    if capability < OLDEST:
        name = ".".join(map(str, capability))
        return f"compute capability {name}: sparse tensor cores begin with 8.0 (Ampere)"
    return None


def why_no_cusparselt(device: torch.device) -> str | None:
    """Why cuSPARSELt does not run on a device, or None if it does."""
    reason = why_no_gpu(device)
    if reason is None and not has_cusparselt():
        reason = "no cuSPARSELt: this build of torch has none, or its library cannot be loaded"
    return reason


def why_no_cutlass(device: torch.device) -> str | None:
    """Why torch's CUTLASS kernels do not run on a device, or None if they do."""
    reason = why_no_gpu(device)
    if reason is None and capability_of(device)[0] != 8:
        name = ".".join(map(str, capability_of(device)))
        reason = f"compute capability {name}: torch's CUTLASS kernels are for 8.x"
    return reason


def has_cuda() -> bool:
    """Whether torch sees a GPU."""
    return torch.cuda.is_available()


def capability_of(device: torch.device) -> tuple[int, int]:
    """Major and minor number of a GPU's compute capability."""
    return torch.cuda.get_device_capability(device)


def has_cusparselt() -> bool:
    """Whether torch was built with cuSPARSELt and can call it."""
    return torch.backends.cusparselt.is_available() and cusparselt_version() is not None


def cusparselt_version() -> int | None:
    """Of the library that is loaded, 801 for 0.8.1; None if there is none."""
    try:
        version: int | None = torch.backends.cusparselt.version()
    except (RuntimeError, OSError):
        return None
    return version


def driver_version() -> str:
    """Of NVIDIA's driver, as the system tells it; "unknown" where it does not."""
    for path in _DRIVER_FILES:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if found := re.search(r"\d+\.\d+(\.\d+)?", path.read_text("utf-8")):
                return found[0]
    return "unknown"


@functools.cache
def gpu_identity(device: torch.device) -> dict[str, str]:
    """What a timing on a GPU depends on besides the question asked.

    Args:
        device: with its index.
    """
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": ".".join(map(str, capability_of(device))),
        "processors": str(properties.multi_processor_count),
        "driver": driver_version(),
        "cuda": str(torch.version.cuda),
        "cusparselt": str(cusparselt_version()),
        "torch": torch.__version__,
        "version": __version__,
    }


def with_index(device: torch.device) -> torch.device:
    """A CUDA device with the number that it stands for; any other as it is."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def is_capturing(tensor: torch.Tensor) -> bool:
    """Whether what is done to a tensor now is being recorded into a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
