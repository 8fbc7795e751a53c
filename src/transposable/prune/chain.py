"""Chains of blocks: where each block's input is the block's before, one runs at a time.

A layer in block i of n needs the model only from there: its inputs come from the kept input of the
block, and a model with n blocks is run n times less. Nothing is taken on trust: that blocks form a
chain is seen in runs of the model, and a replay must give the very same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from transposable.errors import CalibrationError
from transposable.prune.calibration import Call
from transposable.prune.chain_recorder import Chain, Given, find_slot, first_tensor, record_blocks
from transposable.prune.plan import Layer
from transposable.prune.replay import Source, Whole, run
from transposable.prune.weights import Weights

Counts = Sequence[Mapping[str, int]]


def find_chains(
    model: nn.Module, layers: Mapping[str, Layer], calls: Sequence[Call], counts: Counts
) -> list[Chain]:
    """The chains of a dense model, longest first, none of them inside a block of another.

    A chain is an nn.ModuleList or nn.Sequential with layers in two or more of its modules, which a
    run of the model calls in order, once, each with the output of the one before. There is none
    where memory does not suffice to find out.
    """
    if not calls:
        return []
    modules = {name: layer.module for name, layer in layers.items()}
    candidates = []
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            chain = Chain.of(tuple(module), modules)
            if len(chain.bearing) > 1:
                candidates.append(chain)
    candidates.sort(key=lambda chain: -len(chain.bearing))
    found: list[Chain] = []
    taken: set[nn.Module] = set()
    for chain in candidates:
        inside = {module for block in chain.blocks for module in block.modules()}
        if not taken.isdisjoint(inside):
            continue
        try:
            tried = _tried(model, chain, calls, counts)
        except torch.OutOfMemoryError:
            return []
        if tried is not None:
            found.append(tried)
            taken |= inside
    return found


def _tried(model: nn.Module, chain: Chain, calls: Sequence[Call], counts: Counts) -> Chain | None:
    """The chain with its slot if a replay gives bit by bit what a whole run does."""
    slot = find_slot(model, calls[0], chain)
    if slot is None:
        return None
    chain = replace(chain, slot=slot)
    everything = range(len(chain.blocks) + 1)
    states = record_blocks(model, calls[0], chain, counts[0], everything)
    if states is None:
        return None
    if len(calls) > 1:
        run(model, calls[1])
    # Last block first, and after another batch: a block that looks at what an earlier one left
    # somewhere, or at a setting of the model around it, does not pass.
    for place in reversed(range(len(chain.blocks))):
        given, hidden, wanted = states.given[place], states.hidden[place], states.hidden[place + 1]
        try:
            output = run(chain.blocks[place], _call(chain, given, hidden, calls[0]))
        except CalibrationError:  # the model as a whole did not fail on this batch
            return None
        if not _same(first_tensor(output), wanted):
            return None
    return chain


@dataclass
class _State:
    """Where one batch is, in the dense or in the pruned model."""

    hidden: torch.Tensor
    given: list[Given]


@dataclass
class _Position:
    """The input of one block for every batch: a :class:`Source` of the layers in it."""

    chain: Chain
    place: int
    calls: Sequence[Call]
    dense: list[_State] = field(default_factory=list)
    pruned: list[_State] = field(default_factory=list)

    @property
    def module(self) -> nn.Module:
        return self.chain.blocks[self.place]

    def call(self, number: int, dense: bool) -> Call:
        state = (self.dense if dense else self.pruned)[number]
        return _call(self.chain, state.given[self.place], state.hidden, self.calls[number])

    def advance(self, weights: Weights) -> None:
        """Go on by one block."""
        for dense, states in ((True, self.dense), (False, self.pruned)):
            with _weights(weights, dense):
                for number, state in enumerate(states):
                    output = run(self.module, self.call(number, dense))
                    state.hidden = first_tensor(output)
        self.place += 1


class Chains:
    """Gives what to run for some layers: a block where that will do, or else the whole model.

    Args:
        model, calls, weights: of this process.
        layers: all layers that are pruned.
        counts: how often each layer is called, by batch.
        enabled: whether to look for chains at all.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[Call],
        weights: Weights,
        layers: Mapping[str, Layer],
        counts: Counts,
        enabled: bool,
    ) -> None:
        self._whole = Whole(model, calls)
        self._weights = weights
        self._counts = counts
        self._chains = find_chains(model, layers, calls, counts) if enabled else []
        self._position: _Position | None = None
        self._untouched = True
        self.replayed: set[nn.Module] = set()
        """The blocks that were run one by one."""

    def source(self, layers: Sequence[Layer]) -> Source:
        """What to run to see the inputs of these layers with all before them as they are now."""
        names = {name for layer in layers for name in layer.tied}
        for chain in self._chains:
            places = {chain.place.get(name) for name in names}
            place = places.pop()
            if places or place is None:
                continue
            position = self._at(chain, place)
            if position is None:
                break
            self.replayed.add(position.module)
            return position
        self._position = None
        return self._whole

    def changed(self, layer: Layer) -> None:
        """A layer has new weights: what was computed with the old ones is no longer true."""
        self._untouched = False
        position = self._position
        if position is not None:
            places = [position.chain.place.get(name) for name in layer.tied]
            if any(place is None or place < position.place for place in places):
                self._position = None

    def _at(self, chain: Chain, place: int) -> _Position | None:
        """The block, or None if it is none; if memory does not suffice, no block is any more."""
        position = self._position
        self._position = None
        try:
            if position is None or position.chain is not chain or position.place > place:
                position = None  # frees what it holds
                position = self._capture(chain, place)
            while position is not None and position.place < place:
                position.advance(self._weights)
        except torch.OutOfMemoryError:
            self._chains.clear()
            return None
        self._position = position
        return position

    def _capture(self, chain: Chain, place: int) -> _Position | None:
        """Run the model, dense and pruned, and keep the inputs of one block; None if it is none.

        In the pruned model blocks could be called otherwise than in the dense one.
        """
        calls = self._whole.calls
        position = _Position(chain, place, calls)
        pool = _Pool()
        for dense, states in ((True, position.dense), (False, position.pruned)):
            if not dense and self._untouched:
                states += [_State(state.hidden, state.given) for state in position.dense]
                continue
            with _weights(self._weights, dense):
                for number, call in enumerate(calls):
                    found = record_blocks(
                        self._whole.module, call, chain, self._counts[number], [place]
                    )
                    if found is None:
                        self._chains.remove(chain)
                        return None
                    given = [pool.shared(one) for one in found.given]
                    states.append(_State(found.hidden[place], given))
        return position


class _Pool:
    """One copy of tensors that many calls are given: masks and positions, mostly."""

    def __init__(self) -> None:
        self._latest: dict[Any, torch.Tensor] = {}

    def shared(self, given: Given) -> Given:
        return pytree.tree_map(self._known, given)  # type: ignore[no-any-return]

    def _known(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        key = (value.shape, value.stride(), value.dtype, value.device)
        known = self._latest.setdefault(key, value)
        if known is not value and not torch.equal(known, value):
            self._latest[key] = known = value
        return known


def _call(chain: Chain, given: Given, hidden: torch.Tensor, call: Call) -> Call:
    args, kwargs = chain.filled(given, hidden.clone())  # a block may write into its input
    return Call(args, kwargs, call.samples, call.number)


def _same(found: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    if found is None or found.dtype != wanted.dtype or found.stride() != wanted.stride():
        return False
    return torch.equal(found, wanted)


def _weights(weights: Weights, dense: bool) -> AbstractContextManager[None]:
    return weights.all_dense() if dense else nullcontext()
