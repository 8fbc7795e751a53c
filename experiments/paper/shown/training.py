"""Static and dynamic training on the page, from the committed results of those experiments."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from experiments.paper.accuracy import DENSE
from experiments.paper.common import TEST_IMAGES
from experiments.paper.shown.base import Documents, Section, own
from experiments.paper.verdicts import JOINED, NO_WORSE, Claim, Finding, Verdict, joined, no_worse
from experiments.tables import by_config, markdown

STATIC = Claim(
    "A trained dense network, masked once and trained on, loses nothing under 4:8T",
    "static training (ResNet-18/50 on ImageNet, detection on COCO, BERT on SQuAD)",
    "4:8T less dense in points, seed by seed, both trained on alike: ResNet-20 and MiniLM, pruned "
    "by magnitude. " + NO_WORSE + JOINED,
)
PRUNED_FIRST = Claim(
    "The same where AdaPrune prunes, not the magnitude",
    "not in the paper, which uses AdaPrune instead of training",
    "As above.",
)
PUBLISHED = Claim(
    "From scratch, 4:8T masks by the 2-approximation every 40 steps reach dense accuracy",
    "dynamic training (ResNet-18/50 on ImageNet)",
    "4:8T less dense in points, ResNet-20 on CIFAR-10. " + NO_WORSE,
)
EXACT = Claim(
    "The same with exact masks at every step",
    "not in the paper",
    "As above.",
)


@dataclass(frozen=True)
class Row:
    """One configuration against dense; accuracies in points of ``unit``."""

    source: str
    config: str
    title: str
    key: str = "top1"
    scale: float = 1.0
    unit: str = "top-1"
    dense: str = DENSE


STATIC_ROWS: Final = (
    Row("static", "4:8T", "ResNet-20, CIFAR-10, 3 epochs"),
    Row("static", "4:8T, 9 epochs", "the same, 9 epochs", dense="dense, 9 epochs"),
    Row("minilm", "4:8T", "MiniLM, STS-B, 2 epochs", "spearman", 100, "100 x Spearman"),
)
PRUNED_FIRST_ROWS: Final = (
    Row("static", "4:8T after AdaPrune", "ResNet-20, CIFAR-10, 3 epochs"),
    Row("minilm", "4:8T after AdaPrune", "MiniLM, STS-B", "spearman", 100, "100 x Spearman"),
)
OTHER_STATIC: Final = (
    Row("static", "2:4T", "ResNet-20, CIFAR-10, 3 epochs"),
    Row("minilm", "2:4T", "MiniLM, STS-B, 2 epochs", "spearman", 100, "100 x Spearman"),
)
DYNAMIC_ROWS: Final = tuple(
    Row("dynamic", config, "ResNet-20 from scratch, 10 epochs")
    for config in (
        "2:4 SR-STE, every step",
        "4:8T exact, every step",
        "2:4T exact, every step",
        "4:8T exact, every 40",
        "2:4T exact, every 40",
        "4:8T 2-approx, every 40",
        "2:4T 2-approx, every 40",
    )
)
GPT_ROW: Final = Row(
    "gpt", "2:4T, dense tail", "GPT from scratch, WikiText-2", "validation_loss", -1, "- loss, nats"
)


def image_error(documents: Documents) -> tuple[float, str]:
    """Standard error, from the choice of the test images, of a difference of two accuracies.

    Measured image by image on the fine-tuned networks of the diversity item; without them that of
    two independent networks of 88 %, which is an upper bound for networks that err alike.
    """
    found = [
        one["of_images"]
        for stage in (documents.get("diversity") or {"stages": []})["stages"]
        if stage["stage"] == "fine-tuned"
        for one in stage["differences"]
        if one["to"] == DENSE
    ]
    if found:
        return statistics.median(found), "measured image by image on fine-tuned networks"
    return 100 * math.sqrt(2 * 0.88 * 0.12 / TEST_IMAGES), "of two independent networks"


def compared(documents: Documents, row: Row) -> dict[str, Any] | None:
    """Mean difference to dense over common seeds, its standard error; None if it was not run."""
    runs = by_config(documents[row.source])
    if row.config not in runs or row.dense not in runs:
        return None
    dense = {run["seed"]: row.scale * run[row.key] for run in runs[row.dense]}
    sparse = {run["seed"]: row.scale * run[row.key] for run in runs[row.config]}
    seeds = sorted(dense.keys() & sparse.keys())
    if not seeds:
        return None
    each = [sparse[seed] - dense[seed] for seed in seeds]
    spread = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None
    images = _choice_error(documents, row)
    # One seed says nothing about seeds: then theirs is taken to be as large as that of the images.
    error = math.hypot(images if spread is None else spread, images)
    return {
        "seeds": len(seeds),
        "dense": statistics.fmean(dense[seed] for seed in seeds),
        "score": statistics.fmean(sparse[seed] for seed in seeds),
        "difference": statistics.fmean(each),
        "error": error,
    }


def _choice_error(documents: Documents, row: Row) -> float:
    """Standard error of a difference for the choice of the test images or pairs; 0: not known."""
    if row.key == "top1":
        return image_error(documents)[0]
    return pair_error(documents) if row.key == "spearman" else 0.0


def pair_error(documents: Documents) -> float:
    """That of the 4:8T mask against the dense encoder, before training."""
    differences = documents["pairs"]["stage"]["differences"]
    return next(float(d["error"]) for d in differences if (d["of"], d["to"]) == ("4:8T", DENSE))


def findings(documents: Documents) -> list[Finding]:
    exact = [row for row in DYNAMIC_ROWS if row.config == "4:8T exact, every step"]
    published = [row for row in DYNAMIC_ROWS if row.config == "4:8T 2-approx, every 40"]
    as_often = [row for row in DYNAMIC_ROWS if row.config == "4:8T exact, every 40"]
    return [
        _finding(STATIC, documents, STATIC_ROWS),
        _finding(PRUNED_FIRST, documents, PRUNED_FIRST_ROWS),
        _finding(PUBLISHED, documents, published, as_often),
        _finding(EXACT, documents, exact),
    ]


def _finding(
    claim: Claim, documents: Documents, rows: Sequence[Row], beside: Sequence[Row] = ()
) -> Finding:
    """Judged by ``rows``; ``beside`` are only told."""
    texts, verdicts = [], []
    for row in rows:
        found = compared(documents, row)
        if found is None:
            texts.append(f"{row.title}: not run")
            verdicts.append(Verdict.MISSING)
            continue
        seeds = f"{found['seeds']} seed{'s' * (found['seeds'] > 1)}"
        texts.append(f"{row.title}: {found['difference']:+.2f} ± {found['error']:.2f} ({seeds})")
        verdicts.append(no_worse(found["difference"], found["error"]))
    for row in beside:
        if (found := compared(documents, row)) is not None:
            texts.append(f"{row.config}: {found['difference']:+.2f} ± {found['error']:.2f}")
    verdict = joined(verdicts)
    short = verdict in (Verdict.FAILS, Verdict.OPEN, Verdict.PARTLY)
    return Finding(
        claim, "; ".join(texts), verdict, "short schedules of small networks" if short else ""
    )


def table(documents: Documents) -> str:
    rows = []
    for row in (*STATIC_ROWS, *PRUNED_FIRST_ROWS, *OTHER_STATIC, *DYNAMIC_ROWS, GPT_ROW):
        found = compared(documents, row)
        if found is None:
            continue
        digits = 4 if row is GPT_ROW else 2
        verdict = "" if row is GPT_ROW else no_worse(found["difference"], found["error"]).value
        rows.append(
            [
                f"{row.title}: {row.config}",
                row.unit,
                str(found["seeds"]),
                f"{found['dense']:.{digits}f}",
                f"{found['score']:.{digits}f}",
                f"{found['difference']:+.{digits}f} ± {found['error']:.{digits}f}",
                verdict,
            ]
        )
    value, how = image_error(documents)
    head = ["training", "score", "seeds", "dense", "sparse", "sparse less dense", "no worse?"]
    note = (
        f"± is one standard error: that of the seeds, and for top-1 {value:.2f} points for the "
        f"choice of the {TEST_IMAGES:,} test images ({how}). Where there is one seed, the seeds' "
        "is taken to be as large as the images'. Spearman: "
        f"{pair_error(documents):.2f} for the choice of the "
        f"{documents['pairs']['pairs']:,} pairs, by bootstrap, between the dense encoder and the "
        "one under its 4:8T mask before training. Loss: seeds only."
    )
    return f"{markdown(head, rows)}\n\n{note}"


SECTION = Section(
    name="training",
    claims=(STATIC, PRUNED_FIRST, PUBLISHED, EXACT),
    sources={
        "static": "experiments/static_cifar10/result.json",
        "dynamic": "experiments/dynamic_cifar10/result.json",
        "minilm": "experiments/finetune_minilm/result.json",
        "gpt": "experiments/pretrain_gpt/result.json",
        "diversity": own("diversity"),
        "pairs": own("pairs"),
    },
    findings=findings,
    table=table,
)
