"""Two rows of a board as a table: a line per column of both."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from rtbench.commands.comparison import Comparison


def compared_table(found: Comparison) -> Table:
    """Its caption above, its notes below."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    table.title, table.title_style = Text(found.caption()), ""
    marks = found.marks()
    notes = [*found.notes, *(f"{marks[flag]} {flag}: {meaning}" for flag, meaning in found.legend().items())]
    table.caption, table.caption_style = Text("\n".join(notes)), "dim"
    _, rows = found.table()
    for column in found.layout():
        words = column.head == "column"
        table.add_column(Text(column.head), justify="left" if words else "right", no_wrap=not words, overflow="fold", vertical="bottom")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
