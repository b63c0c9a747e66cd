"""A sign of life while something takes a few seconds that cannot tell how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def waiting(what: str, console: Console | None = None) -> Iterator[None]:
    """Shows `what` and a spinner on stderr meanwhile, if that is a terminal; nothing is left of it."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
