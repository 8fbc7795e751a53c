"""What verbs share in printing: consoles, progress, numbers, lists of names."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

_UNLIMITED = 100_000


def console(file: TextIO | None = None, width: int = _UNLIMITED) -> Console:
    """A console for a stream; without a terminal nothing is coloured, and lines have this width."""
    from rich.console import Console

    class Plain(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(safe(o) if isinstance(o, str) else o for o in objects), **options)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1; exit codes are decided in one place

    def make(width: int | None) -> Console:
        stream = file or sys.stdout
        return Plain(file=stream, highlight=False, markup=False, emoji=False, width=width)

    made = make(None)
    return made if made.is_terminal else make(width)


def safe(text: str) -> str:
    """The text with everything that is no visible character escaped, as repr does it.

    Names come from files of strangers: a control sequence in one must not reach a terminal.

    Example:
        >>> safe("blocks.0\\x1b[2J.weight, 1.5 MB")
        'blocks.0\\\\x1b[2J.weight, 1.5 MB'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_table(to: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column holds names of tensors.

    Args:
        to: the console.
        columns: headers; one that starts with ">" is aligned to the right.
        rows: cells as text.

    When the terminal is too narrow, names are folded at their dots; nothing is ever cut.
    """
    headers = [column.removeprefix(">") for column in columns]
    rows = [[safe(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    room = max(to.width - sum(widths[1:]) - 2 * (len(columns) - 1), 16)
    widths[0] = min(widths[0], room)

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if column[0] == ">" else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    # By hand: rich's own tables take seconds for the thousands of tensors of a large model.
    to.print(line(headers), style="bold", soft_wrap=True)
    lines = ["-" * (sum(widths) + 2 * (len(widths) - 1))]
    for name, *cells in rows:
        first, *more = fold(name, room)
        lines += [line([first, *cells]), *more]
    click.echo("\n".join(lines), file=to.file)


def fold(name: str, width: int) -> list[str]:
    """A name in pieces of at most ``width``, cut after dots where there are any.

    Example:
        >>> fold("encoder.layer.0.output", 16)
        ['encoder.layer.0.', 'output']
    """
    lines = []
    while len(name) > width:
        cut = name.rfind(".", 0, width) + 1 or width
        lines.append(name[:cut])
        name = name[cut:]
    return [*lines, name]


def document(content: dict[str, Any]) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False))


def shape_text(shape: Sequence[int]) -> str:
    """(384, 64) as "384x64"; a single number as "scalar"."""
    return "x".join(map(str, shape)) if shape else "scalar"


def percent(value: float | None) -> str:
    """A ratio with four decimals, or "-"."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def gap_text(gap: float) -> str:
    """A duality gap; "-" where the solver gives no bound."""
    if math.isinf(gap):
        return "-"
    if gap < 1e-9:
        return "0" if gap == 0 else "<1e-9"
    return f"{gap:.1e}"


def time_text(seconds: float) -> str:
    """Milliseconds below a second, seconds above."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def collapse(names: Iterable[str]) -> list[str]:
    """Names that differ in one number become one: layer.{0-5}.bias.

    Only a number that is a whole part of the path counts: conv1 and conv2 stay apart.

    Example:
        >>> collapse(["layer.0.bias", "layer.1.bias", "layer.2.bias", "norm.weight"])
        ['layer.{0-2}.bias', 'norm.weight']
    """
    paths = [tuple(name.split(".")) for name in names]
    for place in range(max(map(len, paths), default=0)):
        groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for path in paths:
            number = place < len(path) and path[place].isdecimal()
            key = (*path[:place], "", *path[place + 1 :]) if number else path
            groups.setdefault(key, []).append(path)
        paths = []
        for key, members in groups.items():
            if len(members) > 1:
                numbers = sorted(int(path[place]) for path in members)
                members = [(*key[:place], "{" + _ranges(numbers) + "}", *key[place + 1 :])]
            paths += members
    return [".".join(path) for path in paths]


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def left_text(seconds: float) -> str:
    """A time that is left, in whole seconds, minutes or hours.

    Example:
        >>> left_text(42.3), left_text(754), left_text(7400)
        ('42 s', '12 min 34 s', '2 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress(label: str, *, eta: bool = False) -> Iterator[Callable[[float, str], None]]:
    """Report work done on standard error: a bar on a terminal, a line every tenth elsewhere.

    Args:
        label: what is being done.
        eta: also say how much longer it will take at the speed so far.

    Yields:
        A function of (share of the work that is done, name of what was finished).
    """
    err = console(sys.stderr)
    started = time.perf_counter()

    def name_text(share: float, name: str) -> str:
        name = safe(name)
        if not eta or not 0 < share < 1:
            return name
        return f"{name}, {left_text((time.perf_counter() - started) * (1 - share) / share)} left"

    if not err.is_terminal:
        shown = 0

        def line(share: float, name: str) -> None:
            nonlocal shown
            tenths = int(10 * share + 1e-9)
            if tenths > shown:
                shown = tenths
                click.echo(f"{label}: {10 * tenths} % ({name_text(share, name)})", err=True)

        yield line
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(label),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[name]}", markup=False),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(label, total=1.0, name="")
        yield lambda share, name: bar.update(task, completed=share, name=name_text(share, name))
