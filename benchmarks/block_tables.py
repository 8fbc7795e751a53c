"""The speed of whole models as tables: on the terminal (rich), and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks import machine
from benchmarks.block_training import PERIOD
from benchmarks.tables import file_with, markdown_table, print_table, seconds

BEGIN: Final = "<!-- benchmark:block -->"
END: Final = "<!-- /benchmark:block -->"

TRAINING_NOTE: Final = (
    "float32, AdamW, all linear layers of the block sparse. Ratios: median of those taken round by "
    f"round (smallest to largest). Every {PERIOD}: the mean step of a period, with the refresh by "
    "the exact solver and the rebuilt index; values are filled anew at every step. Dense is torch "
    "as it is; oneDNN: the same with all three products of every linear layer through oneDNN."
)
INFERENCE_NOTE: Final = (
    "Time of a dense model over that of the compressed one, end to end. Dense: torch as it is. "
    "oneDNN: the same with every linear layer of the encoder through oneDNN. Difference: largest "
    "of any entry of the unit-length embeddings, from the masked dense model."
)


def show(results: dict[str, Any]) -> None:
    """Print everything."""
    console = Console(width=150)
    for part in results["training"]:
        gate = part["gate"]
        console.print(
            f"gate passed, {_where(part)}: loss and gradients of "
            f"one step ({gate['compared']} tensors) equal float64's to {gate['worst']:.1e}",
            highlight=False,
        )
    for part in results["inference"]:
        worst = max(row["largest_difference"] for row in part["rows"].values())
        console.print(
            f"gate passed, {_where(part)}: {part['layers']} layers equal float64's under "
            f"the mask, embeddings the masked dense model's to {worst:.1e}",
            highlight=False,
        )
    console.print(machine.sentence(results["machine"]), highlight=False)
    if results["quick"]:
        console.print("[bold]--quick: shows that it runs; these figures mean nothing[/bold]")
    for title, rows, note in (
        (training_title(results), training_rows(results), TRAINING_NOTE),
        (inference_title(results), inference_rows(results), INFERENCE_NOTE),
        ("Targets", target_rows(results), ""),
    ):
        print_table(console, title, rows, note)
    for line in results["skipped"]:
        console.print(line, markup=False, highlight=False)


def training_title(results: dict[str, Any]) -> str:
    """What is trained."""
    sizes = {part["size"] for part in results["training"]}
    return f"One training step of a transformer block, {', '.join(sizes)}"


def inference_title(results: dict[str, Any]) -> str:
    """What is run."""
    models = {part["model"] for part in results["inference"]}
    return f"Inference, {', '.join(models)}"


def training_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per pattern, number of threads and kind of step."""
    rows = [
        [
            "step",
            "pattern",
            "threads",
            "dense",
            "this",
            "dense / this",
            "CPU",
            "oneDNN / this",
            "refresh adds",
        ]
    ]
    for part in results["training"]:
        for name, row in part["rows"].items():
            added = row.get("refresh_adds_s")
            rows.append(
                [
                    name,
                    part["pattern"],
                    str(part["threads"]),
                    seconds(part["dense"]["wall_median_s"]),
                    seconds(row["time"]["wall_median_s"]),
                    _spread(row["ratio"]["wall"]),
                    f"{row['ratio']['cpu']['median']:.2f}",
                    f"{row['onednn']['wall']['median']:.2f}" if "onednn" in row else "-",
                    "-" if added is None else seconds(max(added, 0.0)),
                ]
            )
    return rows


def inference_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per pattern, number of threads and batch."""
    kinds = ("dense", "masked dense", "dense, oneDNN")
    rows = [
        ["batch", "pattern", "threads", "compressed", *kinds, "dense, CPU", "largest difference"]
    ]
    for part in results["inference"]:
        for name, row in part["rows"].items():
            found = (row["ratios"].get(kind) for kind in kinds)
            rows.append(
                [
                    name,
                    part["pattern"],
                    str(part["threads"]),
                    seconds(row["times"]["compressed"]["wall_median_s"]),
                    *("-" if one is None else _spread(one["wall"]) for one in found),
                    f"{row['ratios']['dense']['cpu']['median']:.2f}",
                    f"{row['largest_difference']:.1e}",
                ]
            )
    return rows


def target_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per target."""
    rows = [["target", "pattern", "threads", "value", "limit", ""]]
    for row in results["targets"]:
        verdict = "met" if row["met"] else "MISSED"
        rows.append(
            [
                row["target"],
                row["pattern"],
                str(row["threads"]),
                f"{row['value']:.2f}",
                f">= {row['limit']:.1f}",
                verdict if row["judged"] else "not judged: quick",
            ]
        )
    return rows


def markdown(results: dict[str, Any]) -> str:
    """The tables for a document."""
    lines = [
        f"{machine.sentence(results['machine'])}."
        + (" **A quick run: these figures mean nothing.**" if results["quick"] else ""),
        "",
    ]
    for title, rows, note in (
        (training_title(results), training_rows(results), TRAINING_NOTE),
        (inference_title(results), inference_rows(results), INFERENCE_NOTE),
    ):
        if len(rows) > 1:
            lines += [f"**{title}**", "", *markdown_table(rows), "", note, ""]
    lines += [f"- {line}" for line in results["skipped"]]
    return "\n".join(lines).rstrip() + "\n"


def into_markdown(path: Path, results: dict[str, Any]) -> str:
    """As :func:`benchmarks.tables.file_with`."""
    return file_with(path, BEGIN, END, markdown(results))


def _where(part: dict[str, Any]) -> str:
    return f"{part['pattern']}, {part['threads']} thread{'s' if part['threads'] > 1 else ''}"


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
