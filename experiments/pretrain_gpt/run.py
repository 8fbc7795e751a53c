"""A GPT of 10 million parameters on WikiText-2, dense and under 2:4T masks with a dense tail.

python -m experiments.pretrain_gpt.run [--data DIR] [--config NAME] [--seed N]
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from examples.pretrain_gpt import GPT
from experiments import figures, tables, wikitext
from experiments.command import Experiment, Long, command
from experiments.methods import Method, references, refreshes, sparse_weights
from experiments.runs import Run, RunStore
from experiments.training import Rate, Task, fit
from transposable.train import DenseTail, MaskedDecay

MODEL = {"vocabulary": wikitext.VOCABULARY, "context": 256, "width": 384, "depth": 5, "heads": 6}
# One "epoch" is a twelfth of the run, so that the dense tail is the last two.
SETTINGS = {
    "epochs": 12,
    "steps_per_epoch": 20,
    "batch": 16,
    "peak": 1e-3,
    "warm_up": 0.1,
    "decay": 0.1,
    "betas": (0.9, 0.95),
    "clip": 1.0,
}
HELD_OUT = 200_000
TAIL = DenseTail.share(MaskedDecay(6e-5), steps=12 * 20, share=1 / 6)
METHODS = (Method("dense"), Method("2:4T, dense tail", "2:4T", TAIL, 1))
# 100 million parameters; 197 million tokens.
LONG = {
    "context": 512,
    "width": 768,
    "depth": 14,
    "heads": 12,
    "epochs": 60,
    "steps_per_epoch": 200,
    "batch": 32,
    "peak": 6e-4,
}
LONG_TAIL = DenseTail.share(MaskedDecay(6e-5), steps=60 * 200, share=1 / 6)
LONG_METHODS = (Method("dense"), Method("2:4T, dense tail", "2:4T", LONG_TAIL, 1))
SCORE = tables.Score("validation_loss", references(METHODS), digits=4, relative=True)


def load(data: Path, held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
    train, valid = wikitext.load(data)
    return (train[:-HELD_OUT], train[-HELD_OUT:]) if held_out else (train, valid)


def train(
    method: Method, run: Run, split: tuple[torch.Tensor, torch.Tensor], store: RunStore
) -> dict[str, Any]:
    ids, measured = split
    chosen = run.settings
    steps = chosen["steps_per_epoch"]
    torch.manual_seed(run.seed)
    device = chosen.get("device", "cpu")
    net = GPT(**{name: chosen[name] for name in MODEL})
    controller = method.attach(net, include=["blocks.*"])
    net.to(device)
    matrices = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": chosen["decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    task = Task(
        net=net,
        optimizer=torch.optim.AdamW(groups, lr=chosen["peak"], betas=chosen["betas"], fused=True),
        rate=Rate(chosen["peak"], chosen["warm_up"]),
        epochs=chosen["epochs"],
        steps_per_epoch=steps,
        batches=lambda generator: wikitext.windows(
            ids, chosen["context"], chosen["batch"], steps, generator
        ),
        loss=lambda net, windows: net.loss(windows),
        controller=controller,
        clip=chosen["clip"],
        device=device,
    )
    progress = fit(task, run, store)
    return store.finish(
        run,
        {
            "validation_loss": wikitext.mean_loss(net, measured, chosen["context"]),
            "parameters": sum(p.numel() for p in net.parameters()),
            "tokens": chosen["epochs"] * steps * chosen["batch"] * chosen["context"],
            "train_loss": progress.losses,
            "seconds": round(progress.seconds, 1),
            **sparse_weights(controller),
            **refreshes(controller, steps, progress.seconds),
        },
    )


def table(document: dict[str, Any]) -> str:
    rows = []
    for (config, seeds, loss, against), runs in tables.compared(document, SCORE):
        sparse = "refresh_share" in runs[0]
        rows.append(
            [
                config,
                seeds,
                f"{runs[0]['tokens'] / 1e6:.2f} M",
                loss,
                against,
                f"{statistics.fmean(run['train_loss'][-1] for run in runs):.4f}",
                f"{100 * tables.mean(runs, 'refresh_share'):.2f}" if sparse else "",
            ]
        )
    head = (
        "weights",
        "seeds",
        "tokens",
        "validation loss, nats",
        "against dense",
        "training loss, last twelfth",
        "refresh, % of time",
    )
    return tables.markdown(head, rows)


EXPERIMENT = Experiment(
    folder=Path(__file__).parent,
    methods=METHODS,
    seeds=(0, 1, 2),
    settings={**MODEL, **SETTINGS},
    needed=("wikitext2/train.txt.gz", "wikitext2/valid.txt.gz"),
    load=load,
    train=train,
    score=SCORE.key,
    draw=figures.drawing(
        figures.Panels(
            score=SCORE,
            score_label="validation loss after the last step, nats",
            curve="train_loss",
            curve_label="training loss",
            epoch_label="twelfth of the run",
            targets=((0.01, "+1 %"),),
        )
    ),
    table=table,
    long=Long(LONG, LONG_METHODS),
)
main = command(EXPERIMENT)

if __name__ == "__main__":
    main()
