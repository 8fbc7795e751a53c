"""A call right before every step of any torch optimizer, when the gradients are complete."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


def before_optimizer_steps(method: Callable[[Optimizer], None]) -> RemovableHandle:
    """Call a bound method with the optimizer before each step of one, while its owner lives.

    torch's gradient scaler calls the optimizer after unscaling, and a training loop does so after
    clipping, so the gradients are those that the optimizer uses. A closure computes them only
    inside ``step``: then the method is called after the closure, each time.
    """
    reference = weakref.WeakMethod(method)

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        call = reference()
        if call is None:
            return None
        # args[0] is the optimizer itself.
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            call(optimizer)
            return None

        def complete() -> Any:
            loss = closure()
            call(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": complete}
        return (args[0], complete, *args[2:]), kwargs

    handle = register_optimizer_step_pre_hook(hook)
    weakref.finalize(method.__self__, handle.remove)  # type: ignore[attr-defined]
    return handle
