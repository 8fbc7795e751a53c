"""The results as tables: on the terminal (rich), and as Markdown between two markers of a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import machine

BEGIN: Final = "<!-- benchmark:solve -->"
END: Final = "<!-- /benchmark:solve -->"

_PROTOTYPE_NOTE: Final = (
    "Our time is that of find_mask, which allocates the mask; the prototype fills one that already "
    "exists ('new mask': it allocates one too). Ratios, ours to the prototype's, are medians of "
    "those taken round by round."
)

_README_COLUMNS: Final = (
    "pattern",
    "1 thread",
    "CPU",
    "2 threads",
    "speed-up",
    "prototype",
    "its CPU",
    "CPU ratio",
    "CPU, new mask",
)


class MarkerError(Exception):
    """A file without the two markers that the table belongs between."""


def seconds(value: float) -> str:
    """A time as a reader needs it: "52.3 ms", "3.1 s", "1,399 s"."""
    if value < 1:
        return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value * 1e3:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:,.0f} s"


def error(value: float) -> str:
    """A relative error in percent; what is below the gate's tolerance is 0."""
    if abs(value) <= 1e-6:
        return "0"
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def share(value: float) -> str:
    """A share in percent; only all is called 100 %."""
    if value == 1:
        return "100 %"
    return f"{math.floor(value * 1000) / 10:.1f} %"


def print_table(
    console: Console, title: str, rows: list[list[str]], note: str = "", *, sections: bool = False
) -> None:
    """Headings and rows on the terminal; nothing if there is no row below the headings.

    ``sections``: a line wherever the first column changes.
    """
    if len(rows) < 2:
        return
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    for column, heading in enumerate(rows[0]):
        table.add_column(heading, justify="left" if column == 0 else "right")
    for previous, row in zip([None, *rows[1:]], rows[1:], strict=False):
        if sections and previous and previous[0] != row[0]:
            table.add_section()
        table.add_row(*row)
    console.print(table)


def show(results: dict[str, Any]) -> None:
    """Print everything."""
    console = Console(width=150)
    size = results["size"]
    console.print(f"\n{results['gate']['summary']}", highlight=False)
    console.print(f"[bold]{size}x{size}[/bold] on {machine.sentence(results['machine'])}")
    if results["quick"]:
        console.print("[bold]--quick: shows that it runs; these figures mean nothing[/bold]")
    for title, rows, note in (
        ("Exact solver, float32 Gaussian", speed_rows(results), _PROTOTYPE_NOTE),
        ("Other inputs, other paths, memory (relative)", relative_rows(results), ""),
        ("Solvers, one thread", peer_rows(results), _peer_note(results)),
        ("Targets", target_rows(results), ""),
    ):
        print_table(console, title, rows, note, sections=title.startswith("Solvers"))
    for line in results["skipped"]:
        console.print(line, markup=False, highlight=False)


def speed_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per pattern: times, speed-up, ratios to the prototype."""
    rows = [
        [
            "pattern",
            "1 thread",
            "minimum",
            "CPU",
            "2 threads",
            "speed-up",
            "prototype",
            "its CPU",
            "CPU ratio",
            "CPU, new mask",
            "wall ratio",
            "2 threads ratio",
        ]
    ]
    for pattern, parts in results["patterns"].items():
        if "speed" not in parts:
            continue
        times, ratios = parts["speed"]["times"], parts["speed"]["ratios"]

        def time(name: str, key: str = "wall_median_s", times: dict[str, Any] = times) -> str:
            return seconds(times[name][key]) if name in times else "-"

        rows.append(
            [
                pattern,
                time("1 thread"),
                time("1 thread", "wall_min_s"),
                time("1 thread", "cpu_median_s"),
                time("2 threads"),
                _ratio(ratios.get("speed_up_2_threads"), "x"),
                time("prototype, 1 thread"),
                time("prototype, 1 thread", "cpu_median_s"),
                _ratio(ratios.get("prototype, cpu")),
                _ratio(ratios.get("prototype with a new mask, cpu")),
                _ratio(ratios.get("prototype, wall")),
                _ratio(ratios.get("prototype, 2 threads, wall")),
            ]
        )
    return rows


def relative_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per pattern: inputs, paths and memory as ratios."""
    rows = [
        [
            "pattern",
            "int4 grid",
            "half zeros",
            "all equal",
            "bf16",
            "AVX2 / AVX-512",
            "baseline / AVX-512",
            "peak memory",
        ]
    ]
    for pattern, parts in results["patterns"].items():
        ratios = parts.get("speed", {}).get("ratios", {})
        paths = parts.get("paths", {}).get("ratios", {})
        peak = parts.get("memory")
        names = ("int4 grid", "half zeros", "all equal", "bf16")
        rows.append(
            [
                pattern,
                *(_ratio(ratios.get(f"{name} / Gaussian")) for name in names),
                _ratio(paths.get("avx2")),
                _ratio(paths.get("baseline")),
                "-" if peak is None else f"{peak['ratio']:.2f} x (in + out)",
            ]
        )
    return rows if any(cell != "-" for row in rows[1:] for cell in row[1:]) else rows[:1]


def peer_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per pattern and solver."""
    rows = [
        ["pattern", "solver", "time", "x exact", "mean error", "worst tile", "exactly N", "tiles"]
    ]
    for pattern, parts in results["patterns"].items():
        for row in parts.get("peers", ()):
            rows.append(
                [
                    pattern,
                    row["label"],
                    _scaled_time(row),
                    _times(row["times_exact"]["median"]),
                    error(row["mean_error"]) if row["valid"] else "invalid: keeps more than N",
                    error(row["worst_error"]) if row["valid"] else "-",
                    share(row["exactly_n"]),
                    f"{row['tiles']:,}",
                ]
            )
    return rows


def target_rows(results: dict[str, Any]) -> list[list[str]]:
    """Heading and one row per target and pattern."""
    rows = [["target", "pattern", "value", "limit", ""]]
    for row in results["targets"]:
        verdict = "met" if row["met"] else "MISSED"
        rows.append(
            [
                row["target"],
                row["pattern"],
                f"{row['value']:.2f}",
                f"{'>=' if row['at_least'] else '<='} {row['limit']:.1f}",
                verdict if row["judged"] else "not judged: quick or small",
            ]
        )
    return rows


def markdown(results: dict[str, Any]) -> str:
    """The tables for the README: times of all solvers, their quality at one pattern, our ratios."""
    size, patterns = results["size"], list(results["patterns"])
    lines = [
        f"One {size}x{size} float32 Gaussian matrix, one thread; "
        f"{machine.sentence(results['machine'])}."
        + (" **A quick run: these figures mean nothing.**" if results["quick"] else ""),
        "",
    ]
    shown = featured(results)
    if shown is not None:
        lines += _solver_table(results, patterns, shown)
    speed = speed_rows(results)
    if len(speed) > 1:
        columns = [speed[0].index(heading) for heading in _README_COLUMNS]
        narrow = [[row[column] for column in columns] for row in speed]
        lines += [*markdown_table(narrow), "", _PROTOTYPE_NOTE, ""]
    relative = relative_rows(results)
    if len(relative) > 1:
        lines += [
            *markdown_table(relative),
            "",
            "Times relative to Gaussian float32; peak growth of the resident memory relative to "
            "weight and mask.",
            "",
        ]
    lines += [f"- {line}" for line in results["skipped"]]
    return "\n".join(lines).rstrip() + "\n"


def featured(results: dict[str, Any]) -> str | None:
    """The pattern whose quality is shown where there is room for one: 8:16T, or the last."""
    measured = [name for name, parts in results["patterns"].items() if parts.get("peers")]
    if not measured:
        return None
    return "8:16T" if "8:16T" in measured else measured[-1]


def into_markdown(path: Path, results: dict[str, Any]) -> str:
    """As :func:`file_with`."""
    return file_with(path, BEGIN, END, markdown(results))


def file_with(path: Path, begin: str, end: str, table: str) -> str:
    """The text of the file with the table between its markers; a new file if there is none.

    Raises:
        MarkerError: if the file has no pair of markers.
    """
    if not path.exists():
        return f"{begin}\n{table}{end}\n"
    return within_markers(path, path.read_text(), begin, end, table)


def within_markers(path: Path, text: str, begin: str, end: str, table: str) -> str:
    """The text of a file with the table between two markers.

    Raises:
        MarkerError: if the text has no pair of markers.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise MarkerError(
            f"{path}: needs one line {begin} and, after it, one line {end}; add them where the "
            "table belongs"
        )
    return f"{text[: text.index(begin)]}{begin}\n{table}{text[text.index(end) :]}"


def _solver_table(results: dict[str, Any], patterns: list[str], shown: str) -> list[str]:
    by_name: dict[str, dict[str, Any]] = {}
    for pattern in patterns:
        for row in results["patterns"][pattern].get("peers", ()):
            by_name.setdefault(row["name"], {})[pattern] = row
    heading = ["solver", *patterns, f"mean error, {shown}", "worst tile", "exactly N"]
    rows = [heading]
    for of_pattern in by_name.values():
        at = of_pattern.get(shown)
        label = next(iter(of_pattern.values()))["label"]
        rows.append(
            [
                f"**{label}**" if label == "transposable exact" else label,
                *(_scaled_time(of_pattern[p]) if p in of_pattern else "-" for p in patterns),
                error(at["mean_error"]) if at and at["valid"] else "-",
                error(at["worst_error"]) if at and at["valid"] else "-",
                share(at["exactly_n"]) if at else "-",
            ]
        )
    return [*markdown_table(rows), "", _peer_note(results), ""]


def _peer_note(results: dict[str, Any]) -> str:
    counts = [
        f"{min(scaled):,} to {max(scaled):,} at {pattern}"
        for pattern, parts in results["patterns"].items()
        if (scaled := [row["tiles"] for row in parts.get("peers", ()) if row["scaled"]])
    ]
    return (
        f"~: scaled to the matrix from fewer tiles ({', '.join(counts) or 'none here'}). Error: "
        "kept magnitude short of the optimum, per tile; 0 is at most 1e-6. Exactly N: share of the "
        "tiles with exactly N kept in every row and column."
    )


def _scaled_time(row: dict[str, Any]) -> str:
    return ("~" if row["scaled"] else "") + seconds(row["seconds_per_matrix"])


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: dict[str, float] | None, suffix: str = "") -> str:
    return "-" if value is None else f"{value['median']:.2f}{suffix}"


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, the first row its heading."""
    rule = ["---", *["--:"] * (len(rows[0]) - 1)]
    # A tilde pair would strike out what is between them.
    return ["| " + " | ".join(row).replace("~", "\\~") + " |" for row in (rows[0], rule, *rows[1:])]
