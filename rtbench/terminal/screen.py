"""What people see in a terminal: the board, the plan, and progress. A plugin of the event hooks like any other.

Results go to stdout and progress to stderr. Into a pipe or a file the same tables are plain text at their full width.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rtbench.parts.flags import MARKS, PLAIN
from rtbench.ranking.board import Board
from rtbench.ranking.table import Column
from rtbench.terminal.progress import Screen

__all__ = ["Screen", "board_table", "show_table"]

FULL = 100_000
"""A width that no table reaches."""
GAP = 2
FAILURES = 5


def show_table(table: Table, file: TextIO | None = None) -> None:
    """Prints to stdout; in ASCII where the output cannot hold more."""
    console = Console(file=file or sys.stdout)
    console.width = max(console.width, console.measure(table).minimum) if console.is_terminal else FULL
    with console.capture() as captured:
        console.print(table)
    text = "\n".join(line.rstrip(" ") for line in captured.get().splitlines()) + "\n"
    if not console.encoding.startswith("utf"):
        text = text.translate(str.maketrans("–…" + MARKS, "-~" + PLAIN)).replace(" ± ", " +-")
        text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.file.write(text)


def show_rows(heads: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Prints rows under their heads, every cell as it is: what looks like markup is text."""
    table = Table(*heads, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    show_table(table)


def board_table(board: Board, width: int | None = None) -> Table:
    """The board in at most `width` characters: that of the terminal if not given, all there is if stdout is none.

    A narrow terminal does without the columns of least weight, then with shortened words; numbers are never broken.
    """
    if width is None:
        console = Console(file=sys.stdout)
        width = console.width if console.is_terminal else FULL
    columns, cells, hidden = fit(board.layout(), board.text(), width)
    full = width == FULL
    table = _empty(columns, cells, full)
    hung = [_hang(column, texts, full) for column, texts in zip(columns, zip(*cells, strict=True), strict=True)]
    for row, texts in zip(board.shown(), zip(*hung, strict=True), strict=True):
        style = "dim" if "chance-level" in row.flags else "red" if row.status == "failed" else ""
        bold = [column.kind == "probe" and column.name in board.rank for column in columns]
        pairs = zip(texts, bold, strict=True)
        table.add_row(*(Text(text, "bold" if main else "", justify=side) for (text, side), main in pairs), style=style)
    table.title = Text(board.caption())
    table.caption = Text("\n".join(_notes(board, hidden)))
    return table


def fit(columns: list[Column], cells: list[list[str]], width: int) -> tuple[list[Column], list[list[str]], list[str]]:
    """The columns that fit `width`, their cells, and the names of those that do not; what has to stay may be wider still."""
    columns, cells, hidden = list(columns), [list(row) for row in cells], []
    while _total(columns, cells) > width:
        least = min(column.weight for column in columns)
        if least > 3 and (_bare_verdicts(columns, cells) or _count_flags(columns, cells)):
            continue
        if least == 9 and _shorten(columns, cells):
            continue
        probes = [column for column in columns if column.kind == "probe"]
        victims = [column for column in columns if column.weight == least] if least < 9 else probes[1:]
        if not victims:
            break
        # Of equal weight the rightmost goes first.
        place = columns.index(victims[-1])
        hidden.append(f"{columns[place].name} published" if columns[place].kind == "published" else columns[place].name)
        columns.pop(place)
        cells = [row[:place] + row[place + 1 :] for row in cells]
    return columns, cells, hidden[::-1]


def _bare_verdicts(columns: list[Column], cells: list[list[str]]) -> bool:
    """Leaves the words of verdicts without their tests; False if that is done or there are none."""
    for i, column in enumerate(columns):
        if column.kind == "ticket" and any(" (" in row[i] for row in cells):
            for row in cells:
                row[i] = row[i].partition(" (")[0]
            return True
    return False


def _count_flags(columns: list[Column], cells: list[list[str]]) -> bool:
    """Puts the number of flags for their names, under an exclamation mark; False if that is done or there are none."""
    for i, column in enumerate(columns):
        if column.kind == "flags" and column.head != "!":
            columns[i] = column._replace(head="!")
            for row in cells:
                row[i] = str(row[i].count(",") + 1) if row[i] else ""
            return True
    return False


def _shorten(columns: list[Column], cells: list[list[str]]) -> bool:
    """Takes a letter off the widest column of words, its head included; False if none has more than four."""
    widths = {i: _width(column, [row[i] for row in cells]) for i, column in enumerate(columns) if not column.number}
    widest = max(widths, key=lambda i: widths[i], default=-1)
    if widest < 0 or widths[widest] <= 4:
        return False
    limit = widths[widest] - 1
    columns[widest] = columns[widest]._replace(head=_cut(columns[widest].head, limit))
    for row in cells:
        row[widest] = _cut(row[widest], limit)
    return True


def _cut(text: str, limit: int) -> str:
    return text if cell_len(text) <= limit else set_cell_size(text, limit - 1) + "…"


def _total(columns: list[Column], cells: list[list[str]]) -> int:
    return sum(_width(column, [row[i] for row in cells]) + GAP for i, column in enumerate(columns)) - GAP


def _width(column: Column, cells: Sequence[str]) -> int:
    """As wide as its widest cell, the letters of all flags beside the widest number, and the longest word of its head."""
    room = max((len(cell) - len(cell.rstrip(MARKS)) for cell in cells), default=0)
    return max([*(cell_len(cell.rstrip(MARKS)) + room for cell in cells), *map(cell_len, column.head.split(" "))])


def _hang(column: Column, cells: Sequence[str], full: bool) -> list[tuple[str, Any]]:
    """The cells and how each is set: numbers stand flush, with the letters of their flags after that."""
    bare = [cell.rstrip(MARKS) for cell in cells]
    room = max((len(cell) - len(text) for cell, text in zip(cells, bare, strict=True)), default=0)
    if not room or not column.number:
        return [(cell, None) for cell in cells]
    width = _wide(column, cells, full) - room
    return [(text.rjust(width) + cell[len(text) :], "left") for cell, text in zip(cells, bare, strict=True)]


def _wide(column: Column, cells: Sequence[str], full: bool) -> int:
    return max(cell_len(column.head) if full else 0, _width(column, cells))


def _empty(columns: list[Column], cells: list[list[str]], full: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    table.title_style, table.caption_style = "", "dim"
    for i, column in enumerate(columns):
        width = _wide(column, [row[i] for row in cells], full)
        head = textwrap.wrap(column.head, width, break_long_words=False, break_on_hyphens=False)
        justify: Any = "right" if column.number else "left"
        table.add_column(Text("\n".join(head), justify=justify), justify=justify, no_wrap=True, min_width=width, vertical="bottom")
    return table


def _notes(board: Board, hidden: list[str]) -> list[str]:
    marks = board.marks()
    notes = [*board.notes, *(f"{marks[flag]} {flag}: {meaning}" for flag, meaning in board.legend().items())]
    notes += [f"{name} incomplete: without {', '.join(lost)}" for name, lost in board.incomplete().items()]
    reasons = list(dict.fromkeys(reason for row in board.shown() for reason in row.reasons.values()))
    notes += [f"failed: {reason}" for reason in reasons[:FAILURES]]
    notes += [f"and {len(reasons) - FAILURES} more failures"] * (len(reasons) > FAILURES)
    notes += [f"Not shown for lack of width: {', '.join(hidden)}."] * bool(hidden)
    return [*notes, *_trace(board)]


def _trace(board: Board) -> Iterator[str]:
    """How to see what is behind the number that the first row is ranked by."""
    for row in board.shown()[:1]:
        for name in board.rank:
            if name in row.keys and name in row.probes and row.probes[name].mean is not None:
                yield f"Behind {name} of the first row: rtbench explain {row.keys[name][0][:8]}"
                return
