"""The paper item by item: each part on tiny inputs, the verdicts, the page against its results."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from experiments import classify
from experiments.models.resnet import ResNet
from experiments.paper import (
    accuracy,
    diversity,
    flow,
    networks,
    overhead,
    page,
    pairs,
    retention,
    run,
    transition,
    two_approx,
    walk,
    worst,
)
from experiments.paper.common import PATTERNS, Session, load
from experiments.paper.shown import diversity as shown_diversity
from experiments.paper.shown import matmul as shown_matmul
from experiments.paper.shown import overhead as shown_overhead
from experiments.paper.shown import training as shown_training
from experiments.paper.shown import two_approx as shown_two_approx
from experiments.paper.verdicts import Verdict, joined, no_worse
from transposable import Reference, TwoApprox, find_mask, solve

ROOT = Path(__file__).parents[2]
FLOATS = st.floats(0, 100, allow_nan=False)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Networks and pictures of the real shapes with drawn values, in folders of the test's."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    data = tmp_path / "data"
    for name in ("cifar10", "models"):
        (data / name).mkdir(parents=True)
    for name, count in (("calib", 8), ("test", 40)):
        pixels = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = draw.integers(0, 10, count, dtype=np.uint8)
        np.savez(data / "cifar10" / f"{name}.npz", images=pixels, labels=labels)
    for name, depth in (("resnet20_jpeg", 20), ("resnet20", 20), ("resnet32", 32)):
        save_file(ResNet(depth).state_dict(), data / "models" / f"{name}.safetensors")
    return Session(data, tmp_path / "work", tmp_path / "results")


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    return page.read()


# ---- the 2-approximation -------------------------------------------------------------------------


def test_the_example_of_figure_a1_step_by_step() -> None:
    """Seven entries; each but the first serves one line only, and the diagonal would do for all."""
    steps = walk.walk(walk.example(), pruned=1)
    assert [(s.row, s.col, s.row_lacks, s.col_lacks) for s in steps] == [
        (0, 0, 1, 1),
        (0, 1, 0, 1),
        (0, 2, 0, 1),
        (0, 3, 0, 1),
        (1, 0, 1, 0),
        (2, 0, 1, 0),
        (3, 0, 1, 0),
    ]
    assert [s.weight for s in steps] == sorted(s.weight for s in steps)
    found = two_approx.the_example()
    assert found["optimal"] == [[i, i] for i in range(4)]
    assert found["taken"] / found["least"] == pytest.approx(7 / 4, rel=2 * walk.EPSILON)
    # No other diagonal is as good: the optimum is the only one.
    block = found["block"]
    sums = sorted(sum(block[i][p[i]] for i in range(4)) for p in permutations(range(4)))
    assert sums[0] == found["least"] < sums[1]


@settings(max_examples=40, deadline=None)
@given(m=st.integers(2, 6), data=st.data())
def test_the_walk_is_the_librarys(m: int, data: st.DataObject) -> None:
    block = torch.tensor(
        data.draw(st.lists(FLOATS, min_size=m * m, max_size=m * m)), dtype=torch.float64
    ).reshape(m, m)
    n = data.draw(st.integers(1, m - 1))
    taken = {(step.row, step.col) for step in walk.walk(block, m - n)}
    kept = find_mask(block, f"{n}:{m}T", solver=TwoApprox()).tensor
    assert {(i, j) for i, j in (~kept).nonzero().tolist()} == taken


@pytest.mark.parametrize(("m", "pruned"), [(2, 1), (4, 1), (4, 2), (8, 4)])
def test_the_constructed_block_tends_to_two(m: int, pruned: int) -> None:
    ratios = [
        two_approx.exact_ratio(walk.tight(m, pruned, e), m - pruned) for e in (0.1, 1e-2, 1e-4)
    ]
    assert ratios == sorted(ratios)
    assert 1.999 < ratios[-1] < 2


def test_the_search_climbs_and_stays_below_two() -> None:
    found = worst.search(3, 4, worst.Effort(blocks=64, rounds=40, cull=10), seed=1)
    assert 1 < found["at_random"] <= found["found"] < 2
    block = torch.tensor(found["block"], dtype=torch.float64)
    assert two_approx.exact_ratio(block, 3) == pytest.approx(found["found"], rel=1e-6)
    assert found["evaluated"] == 64 * 41
    assert float(walk.ratios(torch.zeros(1, 4, 4), 2)) == 1  # nothing to prune, nothing lost


def test_losses_on_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [
        torch.randn(1, 13, 18, generator=generator),
        torch.randn(2, 8, 8, generator=generator),
    ]
    found = two_approx.on_weights("net", matrices, 2, 4)
    assert found["tiles"] == 3 * 4 + 2 * 4
    assert found["violations"] == 0
    assert 1 < found["ratio_mean"] < found["ratio_worst"] < 2
    assert 0 < found["repaired_lost_mean"] < found["lost_mean"] < found["lost_worst"] < 1
    assert found["density"] < 0.5


def test_tiles_are_the_full_ones() -> None:
    matrices = torch.arange(2 * 5 * 9.0).reshape(2, 5, 9)
    found = networks.tiles(matrices, 4)
    assert torch.equal(
        found, torch.stack([matrices[b, :4, c : c + 4] for b in (0, 1) for c in (0, 4)])
    )
    assert torch.equal(networks.stacked(found).reshape(found.shape), found)


# ---- the flow and the overhead -------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(m=st.integers(2, 5), data=st.data())
def test_the_published_flow_prunes_the_optimum(m: int, data: st.DataObject) -> None:
    """Against the reference solver, for any number of pruned entries; ties included."""
    costs = np.array(
        data.draw(st.lists(st.integers(0, 9), min_size=m * m, max_size=m * m)), np.int64
    ).reshape(m, m)
    pruned = data.draw(st.integers(1, m - 1))
    chosen = flow.published_flow(costs, pruned)
    assert (chosen.sum(0) == pruned).all()
    assert (chosen.sum(1) == pruned).all()
    best = solve(torch.from_numpy(costs).double(), f"{m - pruned}:{m}T", Reference()).objective
    assert costs[chosen].sum() == costs.sum() - best


def test_flow_on_tiny_sizes(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "SIZES", (4, 8))
    monkeypatch.setattr(flow, "SIDES", (32, 64))
    monkeypatch.setattr(flow, "LARGE", 32)
    monkeypatch.setattr(flow, "CHECKED", {4: 12, 8: 6})
    monkeypatch.setattr(flow, "TIMED", {name: {4: 4, 8: 2} for name in flow.TIMED})
    flow.run(session, rounds=2)
    found = load(session.results / "flow.json")
    assert found is not None
    assert [one["pattern"] for one in found["checks"]] == [
        "3:4T", "2:4T", "1:4T", "7:8T", "4:8T", "1:8T"
    ]  # fmt: skip
    assert all(one["different"] == 0 and one["from_weights"] > 0 for one in found["checks"])
    assert set(found["growth"]["in_m"]) == {*flow.TIMED, flow.PUBLISHED_GROWTH}
    tile, pruned = (np.array(found["drawn"][key]) for key in ("tile", "pruned"))
    assert tile[pruned == 1].sum() == 21


def test_a_solver_that_differs_from_the_flow_is_not_timed(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "SIZES", (4,))
    monkeypatch.setattr(flow, "CHECKED", {4: 8})
    monkeypatch.setattr(flow, "Exact", TwoApprox)
    with pytest.raises(RuntimeError, match="nothing is timed"):
        flow.run(session)
    assert not (session.results / "flow.json").exists()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5), (4, 8)])
def test_the_integer_program_finds_best_masks(n: int, m: int) -> None:
    tiles = torch.randn(5, m, m, generator=torch.Generator().manual_seed(m)).abs()
    kept = overhead.integer_program(tiles, n)
    overhead.gate("integer program", tiles, kept, n)
    with pytest.raises(RuntimeError, match="not those of the exact solver"):
        overhead.gate("integer program", tiles, kept.roll(1, 1), n)


def test_overhead_on_a_tiny_network(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    case = overhead.Case("tiny", 8, 8, 2)
    samples = {"integer program": 3, "LP": 3, "flow": 3}
    overhead.run(session, cases=(case,), rounds=2, samples=samples)
    found = load(session.results / "overhead.json")
    assert found is not None
    assert found["cases"][0]["layers"] == 6
    patterns = found["cases"][0]["patterns"]
    assert set(patterns) == {"4:8T", "2:4T"}
    for methods in patterns.values():
        assert set(methods) == set(shown_overhead.METHODS)
        assert all(one["seconds"] > 0 for one in methods.values())
    tiles = sum(w.tensor.numel() for w in overhead.layers(ResNet(8, width=8))) / 64
    assert patterns["4:8T"]["flow"]["scaled_by"] == tiles / 3
    assert overhead.share(1.0, 0.5, 40) == 5


# ---- diversity -----------------------------------------------------------------------------------


def test_accuracy_on_tiny_networks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three stages; what is finished is not done again; the time limit stops between runs."""
    budget = accuracy.Budget(steps=2, batch=4)
    test_images = accuracy.cifar.load_test(session.data)
    monkeypatch.setattr(accuracy.cifar, "load_train", lambda data: test_images)
    (session.data / "cifar10" / "train_jpeg.npz").touch()
    jobs = [
        accuracy.Job("resnet20_jpeg", "4:8S", "one-shot"),
        accuracy.Job("resnet20_jpeg", "50%", "AdaPrune"),
        accuracy.Job("resnet20", "4:8T", "fine-tuned", 1),
        accuracy.Job("resnet20", "dense", "fine-tuned", 1),
    ]
    accuracy.measure(Session(session.data, session.work, minutes=0), jobs, budget)
    store = accuracy.RunStore(session.work / "accuracy")
    assert not any(store.result(job.run(budget)) for job in jobs)
    accuracy.measure(session, jobs, budget)
    results = [store.result(job.run(budget)) for job in jobs]
    for found in results:
        assert found is not None
        assert found["top1"] == 100 * float(accuracy.hits(found).double().mean())
    assert results[2]["verified_layers"] == 18  # type: ignore[index]
    monkeypatch.setattr(accuracy, "scored", None)
    accuracy.measure(session, jobs, budget)


def test_planned_runs_are_distinct() -> None:
    every = accuracy.jobs()
    assert len(set(every)) == len(every) == 21 + 18 + 42
    assert len({job.run(accuracy.Budget()).key for job in every}) == len(every)
    assert classify.DENSE_LAYERS == ("conv1", "linear")


def test_rank_correlations() -> None:
    order = shown_diversity.block_log10("exact")
    ranked = sorted(PATTERNS, key=lambda p: order[p])
    count = 400
    scores = {p: (torch.arange(count) < 50 * (ranked.index(p) + 1)).repeat(2, 1) for p in PATTERNS}
    found = diversity.image_ranks(scores, order)
    assert [found["kendall"], found["spearman"]] == pytest.approx([1, 1])
    assert found["kendall_low"] == found["kendall_high"] == 1
    assert found["p"] == pytest.approx(1 / 720)
    backwards = diversity.image_ranks(scores, {p: -x for p, x in order.items()})
    assert backwards["kendall"] == pytest.approx(-1)
    assert backwards["p"] == 1


def test_the_two_forms_order_one_pair_otherwise() -> None:
    exact, paper = (
        sorted(PATTERNS, key=lambda p, m=m: -shown_diversity.block_log10(m)[p])
        for m in diversity.METHODS
    )
    assert exact == ["50%", "4:8", "2:4", "4:8T", "2:4T", "4:8S"]
    assert paper == ["50%", "4:8", "4:8T", "2:4", "2:4T", "4:8S"]


def test_errors_of_a_difference() -> None:
    """Networks that err on the same images differ by nothing; independent ones as binomials."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 5000, generator=generator) < 0.88
    b = torch.rand(1, 5000, generator=generator) < 0.85
    assert diversity.difference(a, a) == {"points": 0, "error": 0, "of_images": 0}
    found = diversity.difference(a, b)
    assert found["error"] == pytest.approx(
        100 * ((0.88 * 0.12 + 0.85 * 0.15) / 5000) ** 0.5, rel=0.1
    )
    assert diversity.accuracy_error(a) == pytest.approx(0.46, abs=0.03)
    seeds = torch.stack([a[0], torch.zeros(5000, dtype=torch.bool)])
    assert diversity.accuracy_error(seeds) > 40


def test_summary_of_a_stage_takes_common_seeds() -> None:
    def result(share: float) -> dict[str, Any]:
        hits = [i < share * 50 for i in range(50)]
        packed = int("".join("01"[hit] for hit in hits), 2)
        return {"images": 50, "right": f"{packed:x}"}

    runs = {
        accuracy.Job("resnet20", pattern, "fine-tuned", seed): result(0.3 + 0.1 * place)
        for place, pattern in enumerate(PATTERNS)
        for seed in ((0, 1) if pattern == "2:4" else (0,))
    }
    found = diversity.summarised("resnet20", "fine-tuned", runs)
    assert found is not None
    assert found["seeds"] == [0]
    assert list(found["score"]) == list(PATTERNS)
    assert {one["to"] for one in found["differences"]} == {"2:4", "4:8"}
    del runs[accuracy.Job("resnet20", "4:8S", "fine-tuned", 0)]
    assert diversity.summarised("resnet20", "fine-tuned", runs) is None


# ---- the smaller items ---------------------------------------------------------------------------


def test_retention_is_relative_to_unstructured() -> None:
    found = retention.measured("net", ResNet(8), "layer3.*")
    assert [layer["name"] for layer in found["layers"]] == ["layer3.0.conv1", "layer3.0.conv2"]
    assert found["total"]["50%"] == 1
    assert all(found["total"][p] < 1 for p in PATTERNS[1:])
    assert found["total"]["4:8"] > found["total"]["2:4"] > found["total"]["2:4T"]


def test_transition(session: Session) -> None:
    transition.run(session, draws=2000)
    found = load(session.results / "transition.json")
    assert found is not None
    widths = [curve["width"] for curve in found["curves"]]
    assert widths == sorted(widths, reverse=True)
    assert all(abs(one["deviation"]) < 5 for curve in found["curves"] for one in curve["drawn"])


def test_the_encoder_is_summarised_like_a_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "DRAWS", 60)
    draw = np.random.default_rng(0)
    scores = draw.random(300)
    names = ("dense", *PATTERNS)
    noise = {name: 0.05 * place * draw.standard_normal(300) for place, name in enumerate(names)}
    found = pairs.summarised({name: scores + noise[name] for name in names}, scores)
    assert found["score"]["dense"] == [100]
    assert found["error"]["dense"] == pytest.approx(0, abs=1e-9)
    assert list(found["score"]) == list(names)
    assert all(
        one["error"] > 0 and one["points"] < 0
        for one in found["differences"]
        if one["to"] == "dense"
    )
    assert found["ranks"]["exact"]["kendall"] == pytest.approx(1)
    noise["2:4"] = noise["4:8T"]
    same = pairs.summarised({name: scores + noise[name] for name in names}, scores)
    assert same["differences"][0] == {
        "of": "4:8T", "to": "2:4", "points": 0, "error": 0, "of_images": 0
    }  # fmt: skip


@pytest.mark.parametrize("item", ["retention", "two_approx", "diversity", "flow", "pairs"])
def test_missing_data_is_named(tmp_path: Path, item: str) -> None:
    arguments = ["--parts", item, "--data", str(tmp_path), "--work", str(tmp_path / "work")]
    result = CliRunner().invoke(run.main, arguments)
    assert result.exit_code == 1
    assert f"paper, {item}" in result.output
    assert "not found in" in result.output
    assert "--data DIR" in result.output


def test_an_unknown_part_is_an_error() -> None:
    result = CliRunner().invoke(run.main, ["--parts", "flow,speed"])
    assert result.exit_code == 2
    assert "speed: the parts are diversity, retention" in result.output


# ---- verdicts and page ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "error", "verdict"),
    [
        (0.3, 0.1, Verdict.HOLDS),
        (-0.3, 0.3, Verdict.HOLDS),  # within, and no loss resolved
        (-0.3, 0.05, Verdict.HOLDS),  # a loss, but surely within
        (-0.4, 0.15, Verdict.OPEN),  # a loss, perhaps more than is allowed
        (-0.7, 0.5, Verdict.OPEN),
        (-0.7, 0.1, Verdict.FAILS),
    ],
)
def test_no_worse(difference: float, error: float, verdict: Verdict) -> None:
    assert no_worse(difference, error) is verdict


def test_one_verdict_of_several() -> None:
    holds, fails, unsettled = Verdict.HOLDS, Verdict.FAILS, Verdict.OPEN
    assert joined([]) is Verdict.MISSING
    assert joined([holds, holds]) is holds
    assert joined([holds, fails]) is joined([unsettled, holds]) is Verdict.PARTLY
    assert joined([unsettled, fails]) is fails


def test_verdicts_follow_the_figures(documents: dict[str, Any]) -> None:
    """Other figures, other verdicts: none is written into the program."""

    def changed(section: Any, **paths: Any) -> dict[str, Verdict]:
        found = json.loads(json.dumps(documents[section.name]))
        for path, value in paths.items():
            *keys, last = path.split("__")
            place = found
            for key in keys:
                place = place[int(key) if key.isdigit() else key]
            place[int(last) if last.isdigit() else last] = value
        return {one.claim.text: one.verdict for one in section.judged(found)}

    count = shown_diversity.COUNT.text
    assert changed(shown_diversity.SECTION)[count] is Verdict.FAILS
    block = documents["diversity"]["diversity"]["block"]
    place = [one["pattern"] for one in block].index("4:8T")
    more = {f"diversity__block__{place}__exact": str(10**13)}
    assert changed(shown_diversity.SECTION, **more)[count] is Verdict.HOLDS

    bound = shown_two_approx.BOUND.text
    assert changed(shown_two_approx.SECTION)[bound] is Verdict.HOLDS
    for path, value in (
        ("two_approx__weights__0__violations", 1),
        ("two_approx__searches__0__found", 2.0),
    ):
        assert changed(shown_two_approx.SECTION, **{path: value})[bound] is Verdict.FAILS

    needed = shown_overhead.NEEDED.text
    slow = {"overhead__cases__0__patterns__4:8T__exact__seconds": 1e3}
    assert changed(shown_overhead.SECTION)[needed] is Verdict.FAILS
    assert changed(shown_overhead.SECTION, **slow)[needed] is Verdict.PARTLY

    static = json.loads(json.dumps(documents["training"]))
    for source in ("static", "minilm"):
        for one in static[source]["runs"]:
            one["top1" if source == "static" else "spearman"] = 0.9
    found = {one.claim.text: one.verdict for one in shown_training.SECTION.judged(static)}
    assert found[shown_training.STATIC.text] is Verdict.HOLDS


def test_gpu_results_are_judged_where_there_are_any(documents: dict[str, Any]) -> None:
    section = documents["matmul"]["matmul"]["sections"][0]
    with_gpu = {**documents["matmul"], "gpu": {"gpu_matmul.json": {"sections": [section]}}}
    assert shown_matmul.SECTION.judged(with_gpu)[-1].verdict is Verdict.DIFFERS
    unread = {**documents["matmul"], "gpu": {"gpu_other.json": {"rows": []}}}
    found = shown_matmul.SECTION.judged(unread)[-1]
    assert found.verdict is Verdict.MISSING
    assert "gpu_other.json" in found.measured
    none = shown_matmul.SECTION.judged({**documents["matmul"], "gpu": {}})[-1]
    assert none.verdict is Verdict.MISSING


def test_a_missing_result_is_named_on_the_page(tmp_path: Path) -> None:
    """Without any result every claim is "not measured", and no section pretends otherwise."""
    empty = page.read(tmp_path)
    rows = page.findings(empty)
    assert {one.verdict for one in rows} == {Verdict.MISSING}
    assert len(rows) == len(page.findings(page.read()))
    blocks = page.blocks(empty)
    assert "experiments/paper/results/flow.json not found" in blocks["flow"]


def test_the_page_shows_the_results(documents: dict[str, Any]) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.with_blocks(text, page.blocks(documents)) == text
    pictures = re.findall(r"\(\.\./(experiments/paper/\w+\.png)\)", text)
    assert len(pictures) == 7
    assert all((ROOT / picture).stat().st_size < 300_000 for picture in pictures)


def test_the_page_cannot_drift() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert "one-shot" in page.shown_in(text, "diversity")
    with pytest.raises(ValueError, match="it must hold"):
        page.with_blocks(text, {"verdicts": ""})
    broken = text.replace("<!-- /paper:flow -->", "")
    with pytest.raises(ValueError, match="does not follow its beginning"):
        page.with_blocks(broken, page.blocks(page.read()))


def test_figures_are_drawn(tmp_path: Path, documents: dict[str, Any]) -> None:
    for section in page.SECTIONS:
        if section.draw is not None:
            section.draw(documents[section.name], tmp_path)
    drawn = sorted(file.name for file in tmp_path.glob("*.png"))
    assert drawn == sorted(file.name for file in page.HERE.glob("*.png"))
