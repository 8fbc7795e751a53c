"""Watching a model call the blocks of a chain, and whether they depend on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from transposable.prune.calibration import Call, is_plain
from transposable.prune.replay import End, run

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a block, with None in place of the output of the block before."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Modules that may be called in order, each with the output of the one before.

    Attributes:
        blocks: the modules.
        layers: selected layers by name that are in exactly one of them.
        place: in which.
        slot: where a block takes the output of the one before: a name, or 0 for the first
            positional argument.
    """

    blocks: tuple[nn.Module, ...]
    layers: Mapping[str, nn.Module]
    place: Mapping[str, int]
    slot: int | str = 0

    @classmethod
    def of(cls, blocks: tuple[nn.Module, ...], modules: Mapping[str, nn.Module]) -> Chain:
        """The chain of these blocks, if it is one."""
        owners: dict[nn.Module, list[int]] = {}
        for place, block in enumerate(blocks):
            for module in block.modules():
                owners.setdefault(module, []).append(place)
        inside = {
            name: module for name, module in modules.items() if len(owners.get(module, ())) == 1
        }
        return cls(blocks, inside, {name: owners[module][0] for name, module in inside.items()})

    @property
    def bearing(self) -> set[int]:
        """Which blocks have layers."""
        return set(self.place.values())

    def hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What is in the slot, None if it is empty."""
        if isinstance(self.slot, str):
            return kwargs.get(self.slot)
        return args[0] if args else None

    def filled(self, given: Given, hidden: torch.Tensor | None) -> Given:
        """Arguments with another thing in the slot."""
        args, kwargs = given
        if isinstance(self.slot, str):
            return args, {**kwargs, self.slot: hidden}
        return (hidden, *args[1:]), dict(kwargs)


@dataclass
class Recording:
    """One run: the arguments of all blocks, and the inputs of some (of number n: the output)."""

    given: list[Given] = field(default_factory=list)
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)


def first_tensor(output: Any) -> Any:
    """What a block hands to the next: a tensor, or the first of a tuple."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def find_slot(model: nn.Module, call: Call, chain: Chain) -> int | str | None:
    """Where the second block takes the output of the first, None if it does not."""
    output: Any = None
    found: list[int | str] = []

    def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        nonlocal output
        output = first_tensor(result)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(output, torch.Tensor):
            found.extend([0] if args and args[0] is output else [])
            found.extend(key for key, value in kwargs.items() if value is output)
        raise End

    handles: list[Any] = []
    try:
        handles.append(chain.blocks[0].register_forward_hook(after, with_kwargs=True))
        handles.append(chain.blocks[1].register_forward_pre_hook(before, with_kwargs=True))
        run(model, call)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if len(found) == 1 else None


def record_blocks(
    model: nn.Module,
    call: Call,
    chain: Chain,
    counts: Mapping[str, int],
    keep: Collection[int],
) -> Recording | None:
    """Run the model to the end of the chain; None if its blocks do not form one.

    That is, unless each block is called once and in order, the slot holds the very output of the
    block before, unchanged, and the other arguments are plain and were there before the chain
    began (or come of what was).

    Args:
        chain: with its slot.
        counts: how often each layer is called in this run; all of it must be inside its block.
        keep: the numbers of the blocks whose inputs are copied.
    """
    recorder = _Recorder(chain, keep)
    with recorder.watching():
        run(model, call)
    whole = recorder.next == len(chain.blocks) and not recorder.broken
    expected = {name: counts.get(name, 0) for name in chain.layers}
    return recorder.recording if whole and recorder.counts == expected else None


class _Recorder:
    def __init__(self, chain: Chain, keep: Collection[int]) -> None:
        self.chain = chain
        self.keep = keep
        self.recording = Recording()
        self.counts = dict.fromkeys(chain.layers, 0)
        self.broken = False
        self.next = 0
        self._inside: int | None = None
        self._output: torch.Tensor | None = None
        self._entered: tuple[torch.Tensor, int] = (torch.empty(0), 0)
        self._versions: list[tuple[torch.Tensor, int]] = []
        # Memory that holds anything computed since the chain began, and tensors that keep it.
        self._made: dict[int, torch.Tensor] = {}
        self._between: _Between | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles: list[Any] = []
        try:
            for place, block in enumerate(self.chain.blocks):
                before, after = self._before(place), self._after(place)
                handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(block.register_forward_hook(after, with_kwargs=True))
            for name, layer in self.chain.layers.items():
                handles.append(layer.register_forward_pre_hook(self._layer(name)))
            yield
        finally:
            self._leave_between()
            for handle in handles:
                handle.remove()

    def _layer(self, name: str) -> Callable[[nn.Module, Any], None]:
        # A block may be a layer itself, whose hooks run in the order of their registration.
        def hook(module: nn.Module, args: Any) -> None:
            self.counts[name] += 1
            if self._inside != self.chain.place[name]:
                self._fail()

        return hook

    def _before(self, place: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._leave_between()
            hidden = self.chain.hidden(args, kwargs)
            others = self.chain.filled((args, kwargs), None)
            if (
                self.broken
                or self._inside is not None
                or place != self.next
                or not isinstance(hidden, torch.Tensor)
                or not is_plain(others)
                or (place > 0 and (hidden is not self._output or self._are_changed()))
            ):
                self._fail()
            tensors = _tensors(others)
            if any(_memory(tensor) in self._made for tensor in tensors):
                self._fail()
            self._inside = place
            self._versions = [(tensor, tensor._version) for tensor in tensors]
            self.recording.given.append(others)
            if place in self.keep:
                self.recording.hidden[place] = hidden.clone()
            self._entered = (hidden, hidden._version)

        return hook

    def _after(self, place: int) -> Callable[[nn.Module, Any, Any, Any], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            hidden, version = self._entered
            if self._inside != place or self._are_changed():
                self._fail()
            if hidden._version != version:
                self._make(hidden)
            result = first_tensor(output)
            if not isinstance(result, torch.Tensor):
                self._fail()
            given = {_memory(tensor) for tensor, _ in self._versions}
            for tensor in _tensors(output):
                if _memory(tensor) not in given:  # a mask that is handed on is not new
                    self._make(tensor)
            self._inside = None
            self._output = result
            self._versions = [(result, result._version)]
            self.next = place + 1
            if self.next == len(self.chain.blocks):
                if self.next in self.keep:
                    self.recording.hidden[self.next] = result.clone()
                raise End
            self._between = _Between(self)
            self._between.__enter__()  # type: ignore[no-untyped-call]

        return hook

    def _are_changed(self) -> bool:
        return any(tensor._version != version for tensor, version in self._versions)

    def _make(self, tensor: torch.Tensor) -> None:
        self._made[_memory(tensor)] = tensor

    def _leave_between(self) -> None:
        between, self._between = self._between, None
        if between is not None:
            between.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _fail(self) -> None:
        self.broken = True
        raise End


class _Between(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what is computed between two blocks, perhaps from the output of the first."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _tensors((args, kwargs))
        made = _tensors(result)
        if func._schema.is_mutable:
            made = given  # all of them, to be safe
        elif not made:
            self.recorder.broken = True  # a number: the model may decide by it
        known = set() if func._schema.is_mutable else {_memory(tensor) for tensor in given}
        for tensor in made:
            if _memory(tensor) not in known:  # views show what was there
                self.recorder._make(tensor)
        return result


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
