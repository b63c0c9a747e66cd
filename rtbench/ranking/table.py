"""The board as text: which columns, in what order, and each cell as people read it. Shared by every table format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rtbench.parts.flags import MARKS
from rtbench.ranking import tickets, ties
from rtbench.ranking.budgets import VERSUS
from rtbench.ranking.headings import CONSTANT
from rtbench.ranking.rows import Measured, Row
from rtbench.ranking.wording import NONE, compact, is_worst, label, number, percent, radius, words
from rtbench.ranking.worst import NOTE

if TYPE_CHECKING:
    from rtbench.ranking.board import Board


class Column(NamedTuple):
    """kind: rank, recipe, axis, step, round, probe, published, ticket, trials, flags or status. name: of the axis or the probe.

    number: holds numbers, so it is set flush right. weight: the lower, the sooner a narrow screen does without it; 9 stays.
    """

    kind: str
    name: str
    head: str
    number: bool
    weight: int


def columns(board: Board) -> list[Column]:
    """Rank, recipe, axes, step and round where they differ, probes with what was published, trials, flags, status; but for `without`."""
    return [c for c in _all(board, board.shown()) if not {c.name, c.kind, c.head, c.name if c.weight else CONSTANT} & board.without]


def _all(board: Board, rows: list[Row]) -> list[Column]:
    chosen = [Column("rank", "rank", "#", True, 9), *_places(board, rows)]
    for name in board.columns:
        chosen.append(Column("probe", name, _head(board, name), True, _weight(board, name)))
        if any(name in row.published for row in rows):
            chosen.append(Column("published", name, f"{name} published (difference)", True, 1))
    if any(row.ticket for row in rows):
        beside = [place for place, column in enumerate(chosen, 1) if column.name.endswith(VERSUS)]
        chosen.insert(beside[-1] if beside else len(chosen), Column("ticket", "ticket", "ticket", False, 9))
    chosen.append(Column("trials", "trials", "trials", True, 2))
    if any(row.flags for row in rows):
        chosen.append(Column("flags", "flags", "flags", False, 6))
    if any(row.status != "done" for row in rows):
        chosen.append(Column("status", "status", "status", False, 8))
    return chosen


def _weight(board: Board, name: str) -> int:
    if name in board.rank:
        return 9
    if name in board.sparsity or name + VERSUS in board.columns:
        return 8
    return 3 if name.endswith(VERSUS) else 4 if "." in name and not is_worst(name) else 5


def _places(board: Board, rows: list[Row]) -> Iterator[Column]:
    """Which recipe, cell and state a row is: all axes, recipe if there are several, step and round if runs have several states."""
    one_each = len({(row.recipe, str(row.cell)) for row in rows}) == len(rows)
    for name in (*board.axes, "step", "round"):
        kind = name if name in ("recipe", "step", "round") else "axis"
        values = [row.cell[name] if kind == "axis" else getattr(row, name) for row in rows if kind != "axis" or name in row.cell]
        number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        varies = len({_place(row, name) for row in rows}) > 1
        # Where rounds tell states apart, a number that goes with the round says nothing more.
        told = name == "step" and number and len({(row.step, row.round) for row in rows}) == len({row.round for row in rows})
        if values and (varies or kind == "axis") and not told and not (one_each and name in ("step", "round")):
            yield Column(kind, name, name, number, 3 if name == "step" else 9 if varies else 0)


def caption(board: Board) -> str:
    """The suite's own, or one sentence that every table needs: units, what ± is, the order."""
    if board.words:
        return board.words
    trials = sorted({row.trials for row in board.shown()})
    many = f", mean ± standard deviation over {trials[-1]} trials" if trials and trials[-1] > 1 else ", one trial"
    rank = [label(name) for name in board.rank]
    best = f", ranked by {rank[0]}" if rank else ""
    best += f"; rows without it stand below, by {', then '.join(rank[1:])}" if len(rank) > 1 else ""
    best += f"; {ties.NOTE}" if any(row.group for row in board.shown()) else ""
    best += f"; {NOTE}" if any(map(is_worst, [*board.columns, *board.rank])) else ""
    return f"{board.suite}: accuracies in percent{many}{best}"


def marks(flags: Iterable[str]) -> dict[str, str]:
    """A letter for each of these flags, in their order; two letters where there are more flags than letters."""
    return {flag: MARKS[i % len(MARKS)] * (1 + i // len(MARKS)) for i, flag in enumerate(flags)}


def marked(measured: Measured, letters: Mapping[str, str]) -> str:
    """The letters of the flags that a number is under."""
    return "".join(letters[flag] for flag in letters if flag in measured.flags)


def cells(board: Board) -> list[list[str]]:
    """The text of every cell, one list per shown row."""
    layout, rows, letters = columns(board), board.shown(), board.marks()
    ranks = positions(rows, board.rank)
    return [[_cell(board, row, column, rank, letters) for column in layout] for row, rank in zip(rows, ranks, strict=True)]


def positions(rows: list[Row], rank: list[str]) -> list[int | None]:
    """1 for the best, the same within a group and for equal means; None for rows at chance level, unfinished or without a number."""
    found: list[int | None] = []
    count, previous, position = 0, None, 0
    for row in rows:
        name = ties.ranked_by(row, rank)
        if name is None:
            found.append(None)
            continue
        count += 1
        value = row.group or (name, row.probes[name].mean)
        position = position if value == previous else count
        previous = value
        found.append(position)
    return found


def _cell(board: Board, row: Row, column: Column, rank: int | None, letters: dict[str, str]) -> str:
    if column.kind == "rank":
        return str(rank) if rank else NONE
    if column.kind in ("recipe", "axis", "step", "round"):
        return _place(row, column.name)
    if column.kind == "ticket":
        return tickets.text(row.ticket)
    if column.kind == "trials":
        return str(row.trials) if row.done == row.trials else f"{row.done}/{row.trials}"
    if column.kind == "flags":
        return ", ".join(flag if count >= row.done else f"{flag} {count}/{row.trials}" for flag, count in row.flags.items())
    if column.kind == "status":
        return "" if row.status == "done" else row.status
    measured, share = row.probes.get(column.name), column.name in board.accuracies
    if column.kind == "probe":
        return _number(row, measured, share) + marked(measured, letters) if measured else NONE
    return _published(row.published.get(column.name), measured, share)


def _number(row: Row, measured: Measured, share: bool) -> str:
    """The number, and of how many trials it is where finished ones have none, such as an epoch that was never reached."""
    there = f" ({measured.n} of {row.done})" if measured.mean is not None and measured.n < row.done else ""
    return number(measured, share) + there


def _published(entry: dict[str, Any] | None, measured: Measured | None, share: bool) -> str:
    if entry is None:
        return NONE
    shown = percent if share else compact
    if measured is None or measured.mean is None:
        return shown(entry["value"])
    difference = shown(measured.mean - entry["value"])
    return f"{shown(entry['value'])} ({difference if difference.startswith('-') else f'+{difference}'})"


def _place(row: Row, name: str) -> str:
    if name in ("recipe", "step", "round"):
        return str(getattr(row, name))
    return words(row.cell[name]) if name in row.cell else NONE


def incomplete(board: Board) -> dict[str, list[str]]:
    """The shown worst cases that lack an attack somewhere, and which."""
    found: dict[str, dict[str, None]] = {}
    for row in board.shown():
        for name in board.columns:
            if name in row.probes and row.probes[name].missing:
                found.setdefault(name, {}).update(dict.fromkeys(row.probes[name].missing))
    return {label(name): list(lost) for name, lost in found.items()}


def _facts(board: Board, name: str) -> dict[str, list[Any]]:
    """The different values of each fact about how a column was measured, in the order of the rows."""
    there = [row.probes[name] for row in board.shown() if name in row.probes]
    return {
        fact: list(dict.fromkeys(getattr(measured, fact) for measured in there if getattr(measured, fact) is not None))
        for fact in ("attack", "norm", "eps", "split", "samples")
    }


def _samples(samples: list[int]) -> str:
    return str(samples[0]) if len(samples) == 1 else f"{min(samples)}–{max(samples)}"


def _head(board: Board, name: str) -> str:
    facts = _facts(board, name)
    ball = f" {facts['norm'][0]} {radius(facts['eps'][0])}" if len(facts["norm"]) == len(facts["eps"]) == 1 and not is_worst(name) else ""
    samples = f" (n={_samples(facts['samples'])})" if facts["samples"] else ""
    return f"{label(name)}{ball}{samples}"


def protocol(board: Board) -> list[dict[str, str]]:
    """How each probe column was measured; several values where rows differ."""
    found = []
    for column in board.columns:
        facts = _facts(board, column)
        facts["eps"] = [radius(eps) for eps in facts["eps"]]
        samples = {"samples": _samples(facts["samples"])} if facts["samples"] else {}
        samples |= {"label": label(column)} if is_worst(column) else {}
        found.append({"column": column, **{fact: ", ".join(map(str, values)) for fact, values in facts.items() if values}, **samples})
    return found
