"""The demo's tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from transposable.demo.measure import LayerResult, MethodResult, Results
from transposable.pattern import Pattern

_PREFIX = "encoder.layer."


def show_results(results: Results, console: Console) -> None:
    """Print layer table, comparison, verification and sentences."""
    console.print(
        f"{results.model}: {results.layer_count} Linear layers, "
        f"{results.weights:,} weights, threads: {results.threads}",
        style="bold",
    )
    console.print()
    console.print(_layers(results))
    console.print()
    console.print(_comparison(results))
    for skipped in results.skipped:
        console.print(f"  not run: {skipped.solver} {skipped.pattern}: {skipped.reason}")
    console.print()
    console.print(_sentences(results))
    console.print()
    _verification(results, console)


def _layers(results: Results) -> Table:
    table = Table(
        title="Exact solver, layer by layer (kept: relative to unstructured 50 %; gap: worst tile)",
        title_justify="left",
        caption=f"layer names without {_PREFIX!r}",
        caption_justify="left",
    )
    table.add_column("layer", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    for pattern in results.layers:
        for title in (f"{pattern} kept", "gap", "ms"):
            table.add_column(title, justify="right", no_wrap=True)
    for rows in zip(*results.layers.values(), strict=True):
        cells = [cell for row in rows for cell in _layer_cells(row)]
        table.add_row(rows[0].name.removeprefix(_PREFIX), "x".join(map(str, rows[0].shape)), *cells)
    table.add_section()
    totals = []
    for pattern, rows in results.layers.items():
        kept = results.method("exact", pattern).kept
        worst = max(row.gap for row in rows)
        totals += [f"{kept:.4f}", _gap(worst), f"{sum(row.milliseconds for row in rows):.1f}"]
    table.add_row("whole model (worst gap)", "", *totals, style="bold")
    return table


def _layer_cells(row: LayerResult) -> tuple[str, str, str]:
    return f"{row.kept:.4f}", _gap(row.gap), f"{row.milliseconds:.1f}"


def _gap(gap: float) -> str:
    return "0" if gap == 0 else f"{gap:.0e}"


def _comparison(results: Results) -> Table:
    table = Table(
        title="Solvers on the whole model (groups of M that keep more than N: along W, along W^T)",
        title_justify="left",
        caption="unstructured 50 % is judged as 4:8T",
        caption_justify="left",
    )
    table.add_column("solver", no_wrap=True)
    for title in ("pattern", "kept", "ms", "tiles exactly N", "W broken", "W^T broken", "cosine"):
        table.add_column(title, justify="right")
    previous = None
    for method in results.methods:
        transposable = Pattern.parse(method.pattern).transposable
        if previous is not None and method.solver == "exact":
            table.add_section()
        previous = method
        table.add_row(
            method.solver,
            method.pattern,
            f"{method.kept:.4f}",
            f"{1e3 * method.seconds:.1f}",
            f"{100 * method.exact_tiles:.2f} %",
            _broken(method.violations_in, method),
            _broken(method.violations_out, method),
            f"{method.cosine:.4f}",
            style="bold" if transposable and method.solver == "exact" else None,
        )
    return table


def _broken(violations: int, method: MethodResult) -> str:
    return "0" if violations == 0 else f"{100 * violations / method.groups:.1f} %"


def _sentences(results: Results) -> Table:
    table = Table(
        title="Cosine similarity of dense and pruned embeddings (exact masks, no retraining)",
        title_justify="left",
    )
    table.add_column("sentence", overflow="ellipsis", no_wrap=True)
    columns = [results.method("exact", pattern) for pattern in results.layers]
    for method in columns:
        table.add_column(method.pattern, justify="right")
    for index, sentence in enumerate(results.sentences):
        table.add_row(sentence, *(f"{method.cosines[index]:.4f}" for method in columns))
    table.add_section()
    table.add_row("mean", *(f"{method.cosine:.4f}" for method in columns), style="bold")
    return table


def _verification(results: Results, console: Console) -> None:
    for pattern, rows in results.layers.items():
        method = results.method("exact", pattern)
        proved = sum(row.proved for row in rows)
        console.print(
            f"{pattern}: {method.violations_in} of {method.groups:,} groups violated along W, "
            f"{method.violations_out} along W^T; {proved} of {len(rows)} layers proved optimal; "
            f"masks of the whole model in {1e3 * method.seconds:.0f} ms",
            soft_wrap=True,
        )
