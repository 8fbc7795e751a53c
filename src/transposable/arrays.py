"""Arrays of any kind in, arrays of the same kind out: torch, numpy, anything with DLPack."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from transposable.errors import DeviceError, ScoresError

SCORE_DTYPES: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


HOST: Final = ("cpu",)
ANYWHERE: Final = ("cpu", "cuda")
"""Where operations run that a GPU can do as well."""


def to_tensor(array: Any, operation: str, devices: tuple[str, ...] = HOST) -> torch.Tensor:
    """A torch tensor that shares the array's memory where it can.

    Raises:
        ScoresError: if the object is no array.
        DeviceError: if it lives on none of these kinds of device.
    """
    if isinstance(array, torch.Tensor):
        tensor = array.detach()
    elif isinstance(array, np.ndarray):
        tensor = _from_numpy(array, operation)
    elif hasattr(array, "__dlpack__"):
        try:
            tensor = from_dlpack(array)
        except (TypeError, BufferError, RuntimeError, ValueError) as error:
            raise ScoresError(
                f"{operation}: {type(array).__name__} could not be read through DLPack ({error}); "
                "pass a torch tensor or a numpy array"
            ) from error
    else:
        raise ScoresError(
            f"{operation}: received {type(array).__name__}; a torch tensor, a numpy array or an "
            "object with __dlpack__ is needed"
        )
    if tensor.layout != torch.strided:
        raise ScoresError(
            f"{operation}: received a tensor of layout {tensor.layout}; a dense tensor is needed; "
            "call .to_dense() first"
        )
    if tensor.device.type not in devices:
        where = "the CPU" if devices == HOST else "the CPU and on CUDA devices"
        raise DeviceError(
            f"{operation}: received a tensor on {tensor.device}; this operation runs on {where}; "
            "call .cpu() first"
        )
    # A lazily negated view (the imaginary part of a conjugate): its memory holds the other sign.
    return tensor.resolve_neg()


def to_scores(array: Any, operation: str, devices: tuple[str, ...] = HOST) -> torch.Tensor:
    """As :func:`to_tensor`, for arrays of float32, float64, float16 or bfloat16 with dimensions.

    Raises:
        ScoresError: if the dtype or the number of dimensions does not fit.
    """
    tensor = to_tensor(array, operation, devices)
    if tensor.dtype not in SCORE_DTYPES:
        raise ScoresError(
            f"{operation}: received dtype {tensor.dtype}; float32, float64, float16 or bfloat16 is "
            "needed; convert first, for example .float()"
        )
    if tensor.ndim == 0:
        raise ScoresError(
            f"{operation}: received a 0-d tensor; a weight has at least two dimensions; "
            "reshape it first"
        )
    return tensor


def like(tensor: torch.Tensor, array: Any) -> Any:
    """The tensor as the kind of array that ``array`` is."""
    if isinstance(array, torch.Tensor):
        return tensor
    if isinstance(array, np.ndarray):
        return tensor.numpy()
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__().from_dlpack(tensor)
    return tensor


def _from_numpy(array: np.ndarray[Any, Any], operation: str) -> torch.Tensor:
    if array.dtype.name == "bfloat16":  # ml_dtypes; numpy itself has no bfloat16
        return _from_numpy(array.view(np.uint16), operation).view(torch.bfloat16)
    # torch has no negative strides, no strides of part of an element (a field of a record), and no
    # foreign byte order.
    odd = any(stride < 0 or stride % array.itemsize for stride in array.strides if array.itemsize)
    if odd or not array.dtype.isnative:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    try:
        # A read-only array would make torch warn about writes; nothing here writes to its input.
        return from_dlpack(array) if array.flags.writeable else torch.from_numpy(array.copy())
    except (TypeError, BufferError, RuntimeError) as error:
        raise ScoresError(
            f"{operation}: received a numpy array of dtype {array.dtype}; float32, float64, "
            "float16 or bfloat16 is needed; convert it first with .astype(np.float32)"
        ) from error
