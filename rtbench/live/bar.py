"""One line of progress with the time left, where somebody is there to see it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def bar(text: str, wanted: bool | None, console: Console | None = None) -> Iterator[Callable[[int, int], None] | None]:
    """Yields what to call with steps done and in all; the line appears at the first call and is gone at the end.

    wanted: None shows it in a terminal, and in a notebook that has ipywidgets.
    """
    console = console or Console(stderr=True)
    seen = (console.is_terminal and not console.is_jupyter) or (console.is_jupyter and find_spec("ipywidgets") is not None)
    if not (seen if wanted is None else wanted):
        yield None
        return
    progress = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("at most"),
        TimeRemainingColumn(), TextColumn("left"), console=console, transient=True,
    )  # fmt: skip
    task = progress.add_task(text, total=None)

    def report(done: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        progress.stop()
