"""A call right before every step of any torch optimizer, when the gradients are complete."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

Method = Callable[[Optimizer, set[int], bool], None]


class StepHook:
    """Calls a bound method before each step of an optimizer, while the method's owner lives.

    The method gets the optimizer, the ids of its parameters, and whether it was called in this step
    before. torch's gradient scaler calls the optimizer after unscaling, and a training loop does so
    after clipping, so the gradients are those that the optimizer uses. A closure computes them only
    inside ``step``, LBFGS's even several times: then the method is called after it, each time.

    An optimizer may run another one inside its own step (ZeroRedundancyOptimizer does): parameters
    of the outer one are reported once.
    """

    def __init__(self, method: Method) -> None:
        self._method = weakref.WeakMethod(method)
        self._running: list[tuple[weakref.ref[Optimizer], set[int]]] = []
        self._number = next(_NUMBERS)
        _HOOKS[self._number] = self
        _register()

    def remove(self) -> None:
        """Stop calling."""
        _HOOKS.pop(self._number, None)

    def forget(self) -> None:
        """No optimizer is inside its step now, though one may have left it by an exception."""
        self._running.clear()

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """torch's pre-hook; ``args[0]`` is the optimizer."""
        method = self._method()
        if method is None:
            return None
        for depth, (running, _) in enumerate(self._running):
            if running() is optimizer:  # it left its last step by an exception
                del self._running[depth:]
                break
        outer = set().union(*(ids for _, ids in self._running))
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]} - outer
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            method(optimizer, ids, False)
            self._running.append((weakref.ref(optimizer), ids))
            return None
        again = False

        def complete() -> Any:
            nonlocal again
            loss = closure()
            method(optimizer, ids, again)
            again = True
            return loss

        self._running.append((weakref.ref(optimizer), ids))
        if "closure" in kwargs:
            return args, {**kwargs, "closure": complete}
        return (args[0], complete, *args[2:]), kwargs

    def after(self, optimizer: Optimizer) -> None:
        """torch's post-hook."""
        for depth, (running, _) in enumerate(self._running):
            if running() is optimizer:
                del self._running[depth:]
                return


# torch walks its own list of hooks while it calls them, and a hook may be collected as garbage
# meanwhile: so torch has one pair for ever, and the hooks are listed here, weakly.
_HOOKS: Final[weakref.WeakValueDictionary[int, StepHook]] = weakref.WeakValueDictionary()
_NUMBERS: Final = itertools.count()
_LOCK: Final = threading.Lock()
_registered = False


def _register() -> None:
    global _registered
    with _LOCK:
        if not _registered:
            register_optimizer_step_pre_hook(_pre)
            register_optimizer_step_post_hook(_post)
            _registered = True


def _pre(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    call = None
    for hook in list(_HOOKS.values()):
        changed = hook.before(optimizer, args, kwargs)
        if changed is not None:
            args, kwargs = call = changed
    return call


def _post(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for hook in list(_HOOKS.values()):
        hook.after(optimizer)
