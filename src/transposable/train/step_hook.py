"""A call right before every step of any torch optimizer, when the gradients are complete."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


def before_optimizer_steps(method: Callable[[Optimizer, bool], None]) -> RemovableHandle:
    """Call a bound method before each step of an optimizer, while the method's owner lives.

    It gets the optimizer, and whether it was called in this step before.
    torch's gradient scaler calls the optimizer after unscaling, and a training loop does so after
    clipping, so the gradients are those that the optimizer uses. A closure computes them only
    inside ``step``, LBFGS's even several times: then the method is called after it, each time.
    """
    reference = weakref.WeakMethod(method)

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        call = reference()
        if call is None:
            return None
        # args[0] is the optimizer itself.
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            call(optimizer, False)
            return None
        again = False

        def complete() -> Any:
            nonlocal again
            loss = closure()
            call(optimizer, again)
            again = True
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": complete}
        return (args[0], complete, *args[2:]), kwargs

    handle = register_optimizer_step_pre_hook(hook)
    weakref.finalize(method.__self__, handle.remove)  # type: ignore[attr-defined]
    return handle
