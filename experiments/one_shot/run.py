"""Accuracy of pre-trained networks right after magnitude pruning, pattern by pattern.

No retraining, no calibration. Run from the repository root:

    python -m experiments.one_shot.run [--data DIR] [--quick] [--out DIR]
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

import transposable
from experiments.models.resnet import load_resnet
from experiments.stsb import read_pairs
from transposable.demo.encoder import Encoder, load_encoder, pruned
from transposable.demo.measure import best_sums, retention

HERE = Path(__file__).parent
PATTERNS = ("dense", "50%", "4:8", "2:4", "4:8T", "2:4T")
RESNETS = {"resnet20_jpeg": 20, "resnet20": 20, "resnet32": 32}
MINILM = "all-MiniLM-L6-v2"
QUICK_IMAGES, QUICK_PAIRS = 1000, 300

# Computed beforehand by separate code; in percent, Spearman times 100.
INDEPENDENT = {
    "resnet20_jpeg": (88.06, 84.16, 77.40, 65.52, 67.72, 49.98),
    "resnet20": (80.78, 78.20, 66.06, 52.88, 59.48, 37.94),
    MINILM: (86.72, 85.16, 83.74, 82.10, 84.47, 82.50),
}
TOLERANCE = 0.1


@dataclass(frozen=True)
class Row:
    """One network under one pattern.

    ``score`` is in percent (top-1, or Spearman times 100), ``kept`` the magnitude kept relative to
    unstructured 50 % per layer, ``density`` the share of non-zero weights in the pruned layers,
    ``seconds`` the time to find the masks.
    """

    pattern: str
    score: float
    kept: float | None
    density: float
    seconds: float


def conv_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Every convolution but the first, which sees the three colour channels."""
    convs = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    return dict(list(convs.items())[1:])


def evaluate(
    layers: dict[str, nn.Module], layout: str, score: Callable[[], float], report: Callable
) -> list[Row]:
    """One row for each pattern; ``score`` measures the network that the layers belong to."""
    weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    reference = best_sums(weights)
    rows = []
    for pattern in PATTERNS:
        masks, seconds = ({}, 0.0) if pattern == "dense" else _find(weights, pattern, layout)
        with pruned(layers, masks):
            for name, layer in layers.items():
                if pattern != "dense":
                    found = transposable.verify(layer.weight, pattern, layout=layout)
                    if not found:
                        raise RuntimeError(f"{name} does not satisfy {pattern}:\n{found}")
            nonzero = sum(int(layer.weight.count_nonzero()) for layer in layers.values())
            value = score()
        rows.append(
            Row(
                pattern=pattern,
                score=round(value, 4),
                kept=round(retention(weights, masks, reference), 4) if masks else None,
                density=round(nonzero / sum(w.numel() for w in weights.values()), 4),
                seconds=round(seconds, 4),
            )
        )
        report(rows[-1])
    return rows


def _find(
    weights: dict[str, torch.Tensor], pattern: str, layout: str
) -> tuple[dict[str, transposable.Mask], float]:
    started = time.perf_counter()
    masks = {
        name: transposable.find_mask(weight, pattern, layout=layout)
        for name, weight in weights.items()
    }
    return masks, time.perf_counter() - started


def read_images(file: Path, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images [n, 3, 32, 32] and their labels."""
    with np.load(file) as data:
        pixels, labels = data["images"][:limit], data["labels"][:limit]
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    deviation = np.array([0.229, 0.224, 0.225], np.float32)
    images = ((pixels / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def top1(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int = 500) -> float:
    """Percentage of images whose largest output is the label."""
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            chosen = net(images[start : start + batch]).argmax(1)
            right += int((chosen == labels[start : start + batch]).sum())
    return 100 * right / len(images)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of the ranks; equal values share the mean of their ranks."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        return (last - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def similarity(encoder: Encoder, left: list[str], right: list[str], scores: np.ndarray) -> float:
    """100 x Spearman correlation of cosine similarity with the human scores."""
    sentences = sorted({*left, *right})
    place = {sentence: index for index, sentence in enumerate(sentences)}
    embedded = encoder.embed(sentences)
    a, b = (embedded[[place[s] for s in side]] for side in (left, right))
    return 100 * spearman((a * b).sum(1).double().numpy(), scores)


def check_data(data: Path) -> None:
    """Exit with what is missing, if anything is."""
    needed = [
        data / "cifar10" / "test.npz",
        *(data / "models" / f"{name}.safetensors" for name in RESNETS),
        data / "stsb" / "sts-dev.csv",
    ]
    missing = [str(file) for file in needed if not file.is_file()]
    if missing:
        raise click.ClickException(
            f"one_shot: {len(missing)} of {len(needed)} data files are not there: "
            f"{', '.join(missing)}; this experiment evaluates CIFAR-10 ResNets and STS-B and ships "
            "no data; pass the folder that holds cifar10/, models/ and stsb/ with --data DIR"
        )


def deviations(results: dict[str, list[Row]]) -> list[str]:
    """Scores further than TOLERANCE points from the independent computation."""
    found = []
    for name, expected in INDEPENDENT.items():
        for row, value in zip(results[name], expected, strict=True):
            if abs(row.score - value) > TOLERANCE + 1e-9:
                found.append(f"{name} {row.pattern}: {row.score:.2f}, expected {value:.2f}")
    return found


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("../shared/data"),
    show_default=True,
    help="Folder with cifar10/, models/ and stsb/.",
)
@click.option("--quick", is_flag=True, help="1,000 images, 300 pairs, no figure, no check.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where result.json and figure.png go; default here, nowhere with --quick.",
)
def main(data: Path, quick: bool, out: Path | None) -> None:
    """ResNet top-1 and MiniLM Spearman right after magnitude pruning."""
    check_data(data)
    results: dict[str, list[Row]] = {}

    def report(name: str) -> Callable[[Row], None]:
        def line(row: Row) -> None:
            kept = "      " if row.kept is None else f"{row.kept:.4f}"
            print(f"{name:<17} {row.pattern:<6} {row.score:6.2f}   kept {kept}", flush=True)

        return line

    images, labels = read_images(data / "cifar10" / "test.npz", QUICK_IMAGES if quick else None)
    for name, depth in RESNETS.items():
        net = load_resnet(data / "models" / f"{name}.safetensors", depth)
        results[name] = evaluate(
            conv_layers(net), "conv", lambda net=net: top1(net, images, labels), report(name)
        )
    encoder = load_encoder()
    pairs = read_pairs(data / "stsb" / "sts-dev.csv", QUICK_PAIRS if quick else None)
    results[MINILM] = evaluate(
        encoder.linear_layers(), "linear", lambda: similarity(encoder, *pairs), report(MINILM)
    )
    if out is None and not quick:
        out = HERE
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        document = {
            "images": len(images),
            "pairs": len(pairs[0]),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "results": {name: [asdict(row) for row in rows] for name, rows in results.items()},
        }
        (out / "result.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if not quick:
            from experiments.one_shot.figure import draw

            draw(document, out / "figure.png")
    if not quick and (wrong := deviations(results)):
        print("further than 0.1 points from the independent computation:", *wrong, sep="\n  ")
        sys.exit(1)


if __name__ == "__main__":
    main()
