"""Progress of a pruning run: a bar for people, a function for programs, nothing by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Done = Callable[[float, str], None]
"""Called after every layer with the share of the layers done and the layer's name."""


@contextmanager
def shown(progress: bool | Done | None, visible: bool = True) -> Iterator[Done]:
    """What to call after every layer.

    Args:
        progress: True for a bar on stderr with the time that is left; or what to call itself.
        visible: whether this process shows the bar: one of many does.
    """
    if callable(progress):
        yield progress
        return
    if not progress or not visible:
        yield lambda share, name: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("prune"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        # Layers differ in size: the pace of all of them so far, not of the latest.
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(
        *columns, console=Console(stderr=True), speed_estimate_period=float("inf")
    ) as bar:
        task = bar.add_task("calibration", total=1.0)

        def done(share: float, name: str) -> None:
            bar.update(task, completed=share, description=name)

        yield done
