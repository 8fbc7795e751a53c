"""Several processes prune one model: calibration split over them, layers solved by one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from transposable.errors import CalibrationError

T = TypeVar("T")


class Ranks:
    """The processes of the default group of ``torch.distributed``; one without it.

    All of them make the same calls in the same order. Work that may fail on one of them alone goes
    through :meth:`agree`, so that none waits for another one that has given up.
    """

    def __init__(self) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if ready else 1
        self.rank = dist.get_rank() if ready else 0

    def mine(self, everything: Sequence[T]) -> list[T]:
        """Every ``size``-th, so that each rank has its share of any batches."""
        return list(everything[self.rank :: self.size])

    def owner(self, number: int) -> int:
        """The rank that does the piece of work with this number."""
        return number % self.size

    def agree(self, work: Callable[[], T]) -> T:
        """Do this rank's part of the work; if it fails on one rank, it does on all.

        Raises:
            Whatever the work raised here, or CalibrationError with what it raised elsewhere.
        """
        if self.size == 1:
            return work()
        failed: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # an interrupt, too, must not leave the others waiting
            failed = error
        said = self.gather(None if failed is None else f"{type(failed).__name__}: {failed}")
        if failed is not None:
            raise failed
        for rank, message in enumerate(said):
            if message is not None:
                raise CalibrationError(
                    f"prune_model: rank {rank} failed, and with it all others: {message}"
                )
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on all ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace contiguous tensors by their sums over all ranks."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def share(self, owner: int, value: T) -> T:
        """The owner's value, a small one."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=owner)
        return box[0]

    def share_tensor(self, owner: int, tensor: torch.Tensor) -> torch.Tensor:
        """The owner's tensor, of the shape and dtype that this rank's has, to the bit."""
        if self.size == 1:
            return tensor
        # As bytes: not every backend knows every dtype.
        flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
        dist.broadcast(flat.view(torch.uint8), src=owner)
        return flat.reshape(tensor.shape)

    def check_equal(self, described: dict[str, str]) -> None:
        """That all ranks start from the same.

        Raises:
            CalibrationError: if one differs from the first, with the keys in which it does.
        """
        all_of_them = self.gather(described)
        for rank, other in enumerate(all_of_them):
            different = [key for key, value in all_of_them[0].items() if other.get(key) != value]
            if different:
                raise CalibrationError(
                    f"prune_model: rank {rank} of {self.size} differs from rank 0 in "
                    f"{', '.join(different)}; give every rank the same model, settings and "
                    "calibration (no DistributedSampler; seed a loader that shuffles or augments "
                    "alike): the batches are split over the ranks here"
                )
