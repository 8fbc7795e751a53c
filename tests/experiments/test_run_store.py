"""Runs: what is finished is not done again, what was cut off goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments.methods import Method, refreshes, sparse_weights
from experiments.runs import Run, RunStore
from experiments.training import Rate, Task, fit
from transposable.train import SRSTE, DenseTail

RUN = Run("4:8T exact, every step", 3, {"peak": 0.1, "betas": (0.9, 0.95)})
METHOD = Method("4:8T", "4:8T", SRSTE(0.01), 1)


def task(method: Method) -> Task:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 24), nn.Dropout(0.2), nn.ReLU(), nn.Linear(24, 4))
    controller = method.attach(net, include=["0"])

    def batches(generator: torch.Generator):
        for _ in range(3):
            yield torch.randn(8, 16, generator=generator), torch.arange(8) % 4

    return Task(
        net=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-3),
        rate=Rate(0.1, 0.25),
        epochs=4,
        steps_per_epoch=3,
        batches=batches,
        loss=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        controller=controller,
        clip=1.0,
    )


class Killed(Exception):
    pass


class Dying(RunStore):
    """Dies right after its second checkpoint."""

    kept = 0

    def keep(self, run: Run, state: dict) -> None:
        super().keep(run, state)
        self.kept += 1
        if self.kept == 2:
            raise Killed


@pytest.mark.parametrize(
    "method",
    [
        Method("dense"),
        METHOD,
        Method("static", "4:8T"),
        Method("tail", "2:4T", DenseTail(SRSTE(), at=5), 2),
    ],
    ids=lambda method: method.name,
)
def test_a_killed_run_goes_on_bit_for_bit(method: Method, tmp_path: Path) -> None:
    whole = task(method)
    expected = fit(whole, RUN, RunStore(tmp_path / "whole"))

    with pytest.raises(Killed):
        fit(task(method), RUN, Dying(tmp_path / "cut"))
    resumed = task(method)
    store = RunStore(tmp_path / "cut")
    assert store.checkpoint(RUN)["progress"]["epoch"] == 2
    found = fit(resumed, RUN, store)

    assert found.losses == expected.losses
    assert len(found.losses) == 4
    for a, b in zip(
        whole.net.state_dict().values(), resumed.net.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    if method.pattern is not None:
        assert resumed.controller is not None
        steps = [record.step for record in resumed.controller.history]
        assert steps == [record.step for record in whole.controller.history]


def test_a_finished_run_is_found_and_has_no_checkpoint(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert store.result(RUN) is None
    store.keep(RUN, {"epoch": 1})
    written = store.finish(RUN, {"top1": 88.5})
    assert store.result(RUN) == {**written, "settings": {"peak": 0.1, "betas": [0.9, 0.95]}}
    assert written["machine"]["torch"] == torch.__version__
    assert store.checkpoint(RUN) is None
    assert [file.name for file in tmp_path.iterdir()] == ["4-8T-exact--every-step.3.json"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    other = Run(RUN.config, RUN.seed, {"peak": 0.2})
    store.keep(RUN, {})
    with pytest.raises(RuntimeError, match="was made with"):
        store.checkpoint(other)
    store.finish(RUN, {})
    with pytest.raises(RuntimeError, match="--work"):
        store.result(other)


def test_results_come_in_the_order_of_the_configurations(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for config, seed in (("b", 1), ("a", 0), ("b", 0), ("gone", 0)):
        store.finish(Run(config, seed, {}), {})
    found = [(d["config"], d["seed"]) for d in store.results(["b", "a"])]
    assert found == [("b", 0), ("b", 1), ("a", 0)]


def test_the_rate_rises_and_falls() -> None:
    rate = Rate(peak=0.2, warm_up=0.2)
    values = [rate.at(step, 100) for step in range(100)]
    assert values[:20] == sorted(values[:20])
    assert values[20:] == sorted(values[20:], reverse=True)
    assert max(values) == pytest.approx(0.2, rel=0.03)
    assert values[0] < 0.01
    assert values[-1] < 1e-4


def test_too_few_batches_are_an_error(tmp_path: Path) -> None:
    short = task(Method("dense"))
    short.steps_per_epoch = 4
    with pytest.raises(RuntimeError, match="3 batches instead of 4"):
        fit(short, RUN, RunStore(tmp_path))


def test_statistics_of_the_refreshes_by_epoch(tmp_path: Path) -> None:
    done = task(METHOD)
    progress = fit(done, RUN, RunStore(tmp_path))
    found = refreshes(done.controller, 3, progress.seconds)
    assert found["refreshes"] == 12
    assert len(found["flip_rate"]) == len(found["kept"]) == 4
    history = done.controller.history
    assert found["flip_rate"][1] == pytest.approx(
        sum(r.flip_rate for r in history[3:6]) / 3, abs=1e-6
    )
    assert 0 < found["refresh_share"] < 1
    assert refreshes(None, 3, 1.0) == {}


def test_weights_are_verified_as_the_network_uses_them() -> None:
    sparse = task(METHOD)
    assert sparse_weights(sparse.controller) == {"verified_layers": 1}
    sparse.net[0].mask.fill_(True)
    with pytest.raises(RuntimeError, match="4:8T"):
        sparse_weights(sparse.controller)
    assert sparse_weights(None) == {"verified_layers": 0}
