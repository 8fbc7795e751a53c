"""What each of two processes does in test_callback_processes: train, resume, write what it has."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from transposable import sparsify
from transposable.train import SRSTE, DenseTail

RECIPE = DenseTail(SRSTE(decay=0.01), at=7)


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16), torch.nn.Linear(16, 3)
    )
    sparsify(net, "2:4T", exclude="3")
    return net


def _rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(16, generator=generator), "labels": i % 3} for i in range(64)]


def in_transformers(folder: Path) -> list[tuple[Any, ...]]:
    from transformers import Trainer, TrainingArguments

    from transposable.train.callbacks.transformers import SparsityCallback

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": F.cross_entropy(self.net(x), labels)}

    done = []
    for resume in (None, str(folder / "checkpoint-4")):
        callback = SparsityCallback(RECIPE, refresh=1)
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=10,
            save_steps=4,
            use_cpu=True,
            ddp_backend="gloo",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(Classifier(), arguments, train_dataset=_rows(), callbacks=[callback])
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.args.world_size == 2
        done.append((_digest(trainer.model), callback.controller.steps))
    return done


def in_lightning(folder: Path) -> list[tuple[Any, ...]]:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from transposable.train.callbacks.lightning import SparsityCallback

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch["x"]), batch["labels"])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    done = []
    for resume in (None, folder / "epoch=0.ckpt"):
        callback = SparsityCallback(RECIPE, refresh=1)
        module = Classifier()
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=2,
            accumulate_grad_batches=2,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback, ModelCheckpoint(folder, "{epoch}", save_top_k=-1)]
            if resume is None
            else [callback],
            enable_checkpointing=resume is None,
        )
        data = torch.utils.data.DataLoader(_rows(), batch_size=4)
        trainer.fit(module, data, ckpt_path=resume)
        assert trainer.world_size == 2
        done.append((_digest(module), callback.controller.steps))
    return done


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[2])
    found = {"transformers": in_transformers, "lightning": in_lightning}[sys.argv[1]](where)
    (where / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
