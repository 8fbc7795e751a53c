"""The speed of the matrix products as tables: on the terminal (rich), and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks import machine
from benchmarks.harness import Clock
from benchmarks.matmul_peers import DIRECTIONS, TITLES
from benchmarks.matmul_targets import LEAST_TOKENS
from benchmarks.tables import file_with, markdown_table, print_table, seconds

BEGIN: Final = "<!-- benchmark:matmul -->"
END: Final = "<!-- /benchmark:matmul -->"

NOTE: Final = (
    "Time of the dense product over that of the sparse one, packing of the activations included: "
    f"median over the layers and batches of at least {LEAST_TOKENS} tokens (smallest to largest), "
    "each a median of ratios taken round by round. Best: the fastest of torch (MKL), oneDNN and "
    "numpy (OpenBLAS) for that product; oneDNN's activations and weights are in its own format "
    "beforehand. Torch: F.linear, dy @ W, dy.T @ x."
)
_COSTS_NOTE: Final = (
    "Both streams, one thread or the section's; the index is rebuilt when the mask changes, the "
    "values are filled once per optimizer step. In forwards: relative to one pass of F.linear at "
    "the most tokens measured."
)


def show(results: dict[str, Any], *, details: bool = False) -> None:
    """Print everything."""
    console = Console(width=150)
    console.print(f"\n{results['gate']['summary']}", highlight=False)
    console.print(machine.sentence(results["machine"]), highlight=False)
    if results["quick"]:
        console.print("[bold]--quick: shows that it runs; these figures mean nothing[/bold]")
    for section in results["sections"]:
        console.print(f"\n[bold]{section['title']}[/bold]: {about(section)}", highlight=False)
        print_table(console, "Dense / sparse, wall clock", summary_rows(section), NOTE)
        print_table(
            console, "Dense / sparse, CPU time of all threads", summary_rows(section, "cpu")
        )
        print_table(
            console, "Best dense / sparse by layer and batch, wall clock", case_rows(section)
        )
        if details:
            print_table(console, "Times of one product, wall clock", time_rows(section))
        print_table(console, "What the streams cost", cost_rows(section), _COSTS_NOTE)
    print_table(
        console, "Targets", target_rows(results), "Met: the worst product reaches the target."
    )
    for line in results["skipped"]:
        console.print(line, markup=False, highlight=False)


def about(section: dict[str, Any]) -> str:
    """Instruction set, peak, and which OpenBLAS, in one line."""
    value, label = peak(section)
    kernels = section.get("openblas_kernels")
    blas = "" if kernels is None else f", OpenBLAS runs its {kernels} kernels"
    return f"native path {section['isa_taken']}, {label} {value:.0f} GFLOP/s{blas}"


def peak(section: dict[str, Any]) -> tuple[float, str]:
    """The roof in GFLOP/s and what it is: measured FMA peak, or the best dense product of the run.

    The peak is one of float32; a bfloat16 section has its best dense product only.
    """
    measured = section["fma_peak_gflops"]
    if measured is not None and section["dtype"] == "float32" and section["isa"] is None:
        return measured, "measured FMA peak"
    return max(dense_gflops(case) for case in section["cases"]), "best dense product of the run"


def dense_gflops(case: dict[str, Any]) -> float:
    """Of the best dense product."""
    rate: float = case["flops"] / case["dense"][case["best"]]["wall_median_s"] / 1e9
    return rate


def sparse_gflops(case: dict[str, Any], pattern: str) -> float:
    """Of the kept weights alone: no operation with a pruned weight is counted."""
    parts = case["patterns"][pattern]
    rate: float = parts["density"] * case["flops"] / parts["time"]["wall_median_s"] / 1e9
    return rate


def summary_rows(section: dict[str, Any], clock: Clock = "wall") -> list[list[str]]:
    """Heading and one row per pattern: ratios to the best and to torch, by direction."""
    rows = [["pattern"]]
    for direction in DIRECTIONS:
        name = direction.replace("_", " ")
        rows[0] += [f"{name} / best", "/ torch"]
    for pattern in section["patterns"]:
        row = [pattern]
        for direction in DIRECTIONS:
            for against in ("best", "torch"):
                row.append(_spread(list(_ratios(section, direction, pattern, against, clock))))
        rows.append(row)
    return rows


def case_rows(section: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per direction, layer and batch: the ratio of every pattern."""
    rows = [["product", "in x out", "tokens", "best dense", "its GFLOP/s", *section["patterns"]]]
    for case in _sorted(section):
        ratios = (case["patterns"][p]["ratios"]["best"]["wall"] for p in section["patterns"])
        rows.append(
            [
                *_case_name(case),
                case["best"],
                f"{dense_gflops(case):.0f}",
                *(f"{ratio['median']:.2f}" for ratio in ratios),
            ]
        )
    return rows


def time_rows(section: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per direction, layer and batch: medians of every product."""
    rows = [["product", "in x out", "tokens", "rounds", "dense", "oneDNN: reorder of x"]]
    rows[0] += section["patterns"]
    for case in _sorted(section):
        dense = ", ".join(
            f"{name} {seconds(taken['wall_median_s'])}" for name, taken in case["dense"].items()
        )
        reorder = case["reorder"]
        rows.append(
            [
                *_case_name(case),
                str(case["rounds"]),
                dense,
                "-" if reorder is None else seconds(reorder["wall_median_s"]),
                *(
                    seconds(case["patterns"][pattern]["time"]["wall_median_s"])
                    for pattern in section["patterns"]
                ),
            ]
        )
    return rows


def cost_rows(section: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per layer and pattern: index, values, bytes per weight."""
    rows = [
        [
            "in x out",
            "pattern",
            "index build",
            "value refresh",
            "refresh, in forwards",
            "bytes per weight",
            "of dense",
            "both streams",
        ]
    ]
    most = max(section["tokens"])
    forward = {
        (case["in"], case["out"]): case["dense"]["F.linear"]["wall_median_s"]
        for case in section["cases"]
        if case["direction"] == "forward" and case["tokens"] == most
    }
    for cost in section["costs"]:
        dense = cost["dense_bytes_per_weight"]
        rows.append(
            [
                f"{cost['in']} x {cost['out']}",
                cost["pattern"],
                seconds(cost["index_build_s"]),
                seconds(cost["fill_s"]),
                f"{cost['fill_s'] / forward[cost['in'], cost['out']]:.3f}",
                f"{cost['bytes_per_weight']:.2f}",
                f"{100 * cost['bytes_per_weight'] / dense:.0f} %",
                f"{cost['bytes_per_weight_both']:.2f}",
            ]
        )
    return rows


def target_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per target: limit, aim, median, worst product, verdict."""
    rows = [["target", "section", "limit", "aim", "median", "worst", "at", ""]]
    for row in results["targets"]:
        sign = ">=" if row["at_least"] else "<="
        verdict = "met" if row["met"] else "by the median only" if row["median_met"] else "MISSED"
        rows.append(
            [
                row["target"],
                row["section"],
                f"{sign} {row['limit']:.1f}",
                f"{row['aim']:.1f}" if row["at_least"] else "-",
                f"{row['median']:.2f}",
                f"{row['worst']:.2f}",
                row["worst_at"],
                verdict if row["judged"] else "not judged: quick",
            ]
        )
    return rows


def markdown(results: dict[str, Any]) -> str:
    """The summary of every section, and the targets."""
    lines = [
        f"{machine.sentence(results['machine'])}."
        + (" **A quick run: these figures mean nothing.**" if results["quick"] else ""),
        "",
    ]
    for section in results["sections"]:
        lines += [f"**{section['title']}** ({about(section)})", ""]
        lines += [*markdown_table(summary_rows(section)), ""]
    lines += [NOTE, ""]
    targets = target_rows(results)
    if len(targets) > 1:
        lines += [*markdown_table(targets), "", "Met: the worst product reaches the target.", ""]
    lines += [f"- {line}" for line in results["skipped"]]
    return "\n".join(lines).rstrip() + "\n"


def into_markdown(path: Path, results: dict[str, Any]) -> str:
    """As :func:`benchmarks.tables.file_with`."""
    return file_with(path, BEGIN, END, markdown(results))


def _ratios(
    section: dict[str, Any], direction: str, pattern: str, against: str, clock: Clock
) -> Iterator[float]:
    # A run of few tokens only (a quick one) is shown whole.
    least = min(LEAST_TOKENS, max(section["tokens"]))
    for case in section["cases"]:
        if case["direction"] == direction and case["tokens"] >= least:
            yield case["patterns"][pattern]["ratios"][against][clock]["median"]


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _sorted(section: dict[str, Any]) -> list[dict[str, Any]]:
    """By direction, in the order of the layers and batches."""
    return sorted(section["cases"], key=lambda case: DIRECTIONS.index(case["direction"]))


def _case_name(case: dict[str, Any]) -> list[str]:
    title = TITLES[case["direction"]].split(",")[0]
    return [title, f"{case['in']} x {case['out']}", f"{case['tokens']:,}"]
