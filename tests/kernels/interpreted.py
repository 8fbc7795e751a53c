"""Kernels on CPU tensors, by Triton's interpreter; to be imported before anything with kernels.

TRITON_INTERPRET is read when a kernel is defined, so this belongs in a process of its own.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

from triton.runtime import interpreter

from transposable.kernels import bound, exact, row_wise, search, support, walk

_original = interpreter._patch_lang_tensor


def _patched(tensor: Any, scope: Any) -> None:
    """Bounds of a loop are arrays of one element, which numpy no longer turns into an int."""
    _original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patched

# An operation costs the same for any number of tiles here; any schedule is correct.
ENUMERATED = exact.Schedule(2, 6, (64, 1), (64, 1), (64, 1), enumerated=(64, 1))
exact.SCHEDULES.update(
    {4: ENUMERATED, 8: exact.Schedule(2, 6, (64, 1), (64, 1), (64, 1))}
    | {m: exact.Schedule(2, 6, (16, 1), (16, 1), (16, 1)) for m in (16, 32)}
)
for kernel in (bound, row_wise, search, walk):
    kernel.SCHEDULES.update(dict.fromkeys(support.SIDES, (64, 1)))

# From here on tensors on the CPU take the way of those on a GPU.
support.elsewhere = lambda matrices: True
support.why_not = support._why_not_this
