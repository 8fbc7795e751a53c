"""Layer by layer: collect what the calibration says about a layer, prune it, go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from transposable.errors import CalibrationError
from transposable.prune.calibration import Call
from transposable.prune.chain import Chains
from transposable.prune.checkpoint import Checkpoint
from transposable.prune.collect import Collected, close, collect
from transposable.prune.moments import Moments
from transposable.prune.one_layer import Settings, prune_layer
from transposable.prune.plan import Layer
from transposable.prune.ranks import Ranks
from transposable.prune.replay import Groups, merged, trace
from transposable.prune.report import LayerReport
from transposable.prune.results import Results
from transposable.prune.weights import Weights

PARALLEL_MEMORY = 2 << 30
"""Bytes of sums that are collected in one pass over the data, in parallel mode."""

CHAINS = True
"""Whether blocks are run one by one; the results are the same without."""


class Driver:
    """Prunes the layers of a model one after another.

    Args:
        model: in evaluation mode, without gradients.
        layers: what to prune, from :func:`transposable.prune.plan.plan`.
        calls: the calibration, the same on all ranks; none for a method that needs no data.
        weights: of these layers.
        settings: how.
        done: called after every layer with the share of the layers done and the layer's name.
        strict: raise if the calibration never reaches a layer.
        ranks: the processes that share the work.
        checkpoint: on rank 0, where layers that are done are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        calls: Sequence[Call],
        weights: Weights,
        settings: Settings,
        done: Callable[[float, str], None],
        *,
        strict: bool,
        ranks: Ranks,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.model = model
        self.layers = layers
        self.weights = weights
        self.settings = settings
        self.reports: list[LayerReport] = []
        self.notes: list[str] = []
        self._total = len(calls)
        self._calls = ranks.mine(calls)
        self._done = done
        self._strict = strict
        self._ranks = ranks
        self._results = Results(weights, ranks, checkpoint)

    def run(self) -> list[LayerReport]:
        """Prune all layers; what each was like is in the order in which they were pruned.

        Raises:
            CalibrationError: if the model rejects the data, or, with ``strict``, never uses it in
                one of the layers.
            CheckpointError, OutputError: if a finished layer cannot be read or written.
        """
        groups, counts = self._trace()
        reached = {name for group in groups for name in group}
        unreached = [layer for layer in self.layers.values() if reached.isdisjoint(layer.tied)]
        self._check_reached(unreached)
        stages = list(self._stages(groups))
        chains = self._ranks.agree(
            lambda: Chains(
                self.model,
                self._calls,
                self.weights,
                self.layers,
                counts,
                CHAINS and self.settings.sequential and len(stages) > 1,
            )
        )
        finished = self._results.finished()
        for number, stage in enumerate(stages):
            first = [layer for layer in stage if layer.name == layer.tied[0]]
            todo = [layer for layer in stage if layer.tied[0] not in finished]
            started = time.perf_counter()
            # Nothing is pruned yet before the first stage.
            from_pruned = self.settings.sequential and number > 0
            found = self._collect(chains, todo, counts, from_pruned) if todo else {}
            seconds = (time.perf_counter() - started) / max(len(todo), 1)
            self._prune(first, found, finished, seconds, chains)
        first = [layer for layer in unreached if layer.name == layer.tied[0]]
        self._prune(first, {}, finished, 0.0, chains)
        if finished:
            self.notes.append(
                f"{len(finished)} of {len(self.layers)} layers were pruned by an earlier run and "
                "resumed"
            )
        replayed = self._ranks.share(0, len(chains.replayed))
        if replayed:
            self.notes.append(f"{replayed} blocks replayed one by one")
        return self.reports

    def _trace(self) -> tuple[Groups, list[Mapping[str, int]]]:
        """The layers in the order of their calls, and how often each is called, by batch here."""
        modules = {name: layer.module for name, layer in self.layers.items()}
        traced = self._ranks.agree(lambda: trace(self.model, modules, self._calls))
        shares = self._ranks.gather([groups for groups, _ in traced])
        size = self._ranks.size
        in_order = [shares[batch % size][batch // size] for batch in range(self._total)]
        return merged(in_order), [count for _, count in traced]

    def _check_reached(self, missing: Sequence[Layer]) -> None:
        if missing and self._total and self._strict:
            names = ", ".join(repr(layer.name) for layer in missing)
            raise CalibrationError(
                f"prune_model: the calibration never reached {names}; give data that does, leave "
                "them out with exclude, or pass strict=False to have them pruned by magnitude"
            )

    def _stages(self, groups: Groups) -> Iterator[list[Layer]]:
        """Layers whose sums are collected together, in the order of their calls."""
        seen: set[str] = set()
        together: list[list[Layer]] = []
        for names in groups:
            tied = dict.fromkeys(other for name in names for other in self.layers[name].tied)
            new = [name for name in tied if name not in seen]
            seen.update(new)
            if new:
                together.append([self.layers[name] for name in new])
        if self.settings.sequential:
            yield from together
            return
        stage: list[Layer] = []
        held = 0
        for group in together:
            parts = 1 + self.settings.method.needs_halves
            needed = parts * sum(Moments.memory(layer.reading) for layer in group)
            if stage and held + needed > PARALLEL_MEMORY:
                yield stage
                stage, held = [], 0
            stage += group
            held += needed
        if stage:
            yield stage

    def _collect(
        self,
        chains: Chains,
        layers: list[Layer],
        counts: Sequence[Mapping[str, int]],
        from_pruned: bool,
    ) -> dict[str, Collected]:
        """The sums of some layers over the calibration of all ranks.

        Layers are missing that no batch reaches any more, now that those before are pruned.
        """
        found = self._ranks.agree(
            lambda: collect(
                chains.source(layers),
                layers,
                counts,
                self.weights,
                from_pruned=from_pruned,
                halves=self.settings.method.needs_halves,
                samples=self.settings.method.needs_samples,
            )
        )
        for layer in layers:
            if layer.name == layer.tied[0]:
                collected = found[layer.name]
                collected.rerouted = any(self._ranks.gather(collected.rerouted))
                for moments in collected.parts:
                    # What is wanted of dense inputs follows from the others, below.
                    only = [moments.gram, moments.inputs]
                    self._ranks.add(moments.tensors() if from_pruned else only)
                    moments.count = sum(self._ranks.gather(moments.count))
        unknown = [one for one in layers if not from_pruned or found[one.name].rerouted]
        self._ranks.agree(lambda: close(found, unknown, self.weights))
        empty = [layer for layer in layers if not any(p.count for p in found[layer.name].parts)]
        self._check_reached(empty)
        return {name: one for name, one in found.items() if any(p.count for p in one.parts)}

    def _prune(
        self,
        layers: list[Layer],
        found: Mapping[str, Collected],
        finished: set[str],
        seconds: float,
        chains: Chains,
    ) -> None:
        """Prune layers, on each rank another one at the same time, or load what is finished."""
        ranks = self._ranks
        for start in range(0, len(layers), ranks.size):
            at_once = layers[start : start + ranks.size]
            reports: dict[str, LayerReport] = {}

            def work(
                at_once: list[Layer] = at_once, reports: dict[str, LayerReport] = reports
            ) -> None:
                for number, layer in enumerate(at_once):
                    if layer.name in finished:
                        if ranks.rank == 0:
                            reports[layer.name] = self._results.load(layer)
                    elif ranks.owner(number) == ranks.rank:
                        reports[layer.name] = prune_layer(
                            layer,
                            found.get(layer.name),
                            self.weights,
                            self.settings,
                            seconds,
                            self._note(layer, found),
                        )

            ranks.agree(work)
            for number, layer in enumerate(at_once):
                owner = 0 if layer.name in finished else ranks.owner(number)
                report = self._results.share(layer, owner, reports.get(layer.name))
                chains.changed(layer)
                saved = layer.name in finished
                ranks.agree(partial(self._finish, layer, report, saved))

    def _note(self, layer: Layer, found: Mapping[str, Collected]) -> str:
        if not self._total:
            return ""
        if layer.name not in found:
            return f"never reached by the calibration; pruned by {self.settings.without_data.name}"
        if found[layer.name].rerouted:
            return (
                "routed: the pruned model gives it other inputs than the dense one; fitted to its "
                "own outputs for these"
            )
        return ""

    def _finish(self, layer: Layer, report: LayerReport, saved: bool) -> None:
        """Keep what became of a layer, and report it and the others that have its weight."""
        if not saved:
            self._results.save(layer, report)
        for name in layer.tied:
            if name != layer.name:
                note = f"shares the weight of {layer.name}"
                report = replace(report, name=name, seconds=(0.0, 0.0), note=note)
            self.reports.append(report)
            self._done(len(self.reports) / len(self.layers), name)
