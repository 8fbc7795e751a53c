"""Where networks and batches are."""

from __future__ import annotations

from typing import Any

import torch


def device_of(net: torch.nn.Module) -> torch.device:
    """Where the parameters of a network are; the CPU if it has none."""
    first = next(net.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def moved(batch: Any, device: str) -> Any:
    """A tensor, or a tuple of them, on a device."""
    if isinstance(batch, tuple):
        return tuple(moved(each, device) for each in batch)
    return batch.to(device)
