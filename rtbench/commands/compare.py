"""Two rows of a board, paired: which rows are meant, and what a reader has to know of the numbers."""

from __future__ import annotations

from typing import Any

from rtbench.builtin.datasets.common import finish
from rtbench.commands.comparison import Comparison, place
from rtbench.commands.describe import part_text
from rtbench.commands.study import chosen
from rtbench.errors import UserError, unknown
from rtbench.parts.knobs import knobs_of
from rtbench.planning.plan import Plan
from rtbench.planning.suite import text
from rtbench.ranking.board import Board
from rtbench.ranking.pairs import BOTH, SAMPLES, TRIALS, Pair, pair
from rtbench.ranking.rows import Row
from rtbench.ranking.wording import label
from rtbench.ranking.worst import Verdicts

WORDS = {
    BOTH: "with samples: interval over trials and samples (hierarchical paired bootstrap)",
    SAMPLES: "with one trial: interval and p over its samples, so they are about these two networks alone",
    TRIALS: "without samples: interval over trials alone (Student's t of the paired differences)",
}


def compare(board: Board, plan: Plan, one: str, other: str, verdicts: Verdicts) -> Comparison:
    """Two rows of the board of a plan, each named by a key or by recipe=...,axis=...; UserError where they cannot be paired."""
    rows = find(board, one), find(board, other)
    if rows[0] is rows[1]:
        raise UserError(f'"{one}" and "{other}" are the same row')
    data = [_tested(plan.stages[row.state[0]].data) for row in rows]
    if data[0] != data[1]:
        raise UserError(f'"{one}" and "{other}" cannot be paired: the test samples of the one are {data[0]}, of the other {data[1]}')
    found = {name: pair(name, *rows, verdicts) for name in board.columns if all(name in row.probes for row in rows)}
    pairs = [each for each in found.values() if isinstance(each, Pair)]
    lost = [f"{label(name)}: left out, {why}" for name, why in found.items() if isinstance(why, str)]
    for word, there, beside in (("A", rows[0], rows[1]), ("B", rows[1], rows[0])):
        names = [name for name in board.columns if name in beside.probes.keys() - there.probes.keys()]
        lost += [f"{label(name)}: left out, {word} has no such number" for name in names]
    if not pairs:
        raise UserError(f'"{one}" and "{other}" cannot be paired: ' + ("; ".join(lost) if lost else "no number is there of both"))
    return Comparison(board.suite, rows[0], rows[1], pairs, board.accuracies, [*_notes(rows, pairs), *lost], plugins=board.plugins)


def _tested(data: dict[str, Any]) -> str:
    """Where test samples come from, in words: the data set without the knobs that only choose among its training samples."""
    own = {name: value for name, value in data["knobs"].items() if name not in knobs_of(finish)}
    return part_text({"use": data["use"], "knobs": own})


def _notes(rows: tuple[Row, Row], pairs: list[Pair]) -> list[str]:
    """What a reader has to know of the numbers, as "word: meaning"."""
    notes = [WORDS[over] for over in WORDS if any(each.over == over for each in pairs)]
    notes += ["only A, only B: samples that this row alone holds, over all trials"] * any(each.samples is not None for each in pairs)
    floors = {each.trials: each.least for each in pairs if each.over != SAMPLES and each.least is not None}
    notes += [f"p: sign-flip test; with {trials} trials it is {least:.2g} at least" for trials, least in floors.items()]
    notes += [
        f"p of {label(each.column)}: sign-flip test; {each.only_one} + {each.only_other} samples differ, so it is {each.least:.2g} at least"
        for each in pairs
        if each.over == SAMPLES and each.least is not None and each.least > 0.001
    ]
    notes += ["each column is a test of its own: nothing is corrected for how many there are"] * (len(pairs) > 1)
    for each in pairs:
        one, other = (row.probes[each.column] for row in rows)
        for word in ("attack", "norm", "eps"):
            if getattr(one, word) != getattr(other, word):
                notes.append(f"{label(each.column)}: {word} is {getattr(one, word)} of A and {getattr(other, word)} of B")
        if each.samples is not None and max(one.samples or 0, other.samples or 0) > each.samples:
            notes.append(f"{label(each.column)}: on the {each.samples} samples that both saw, of {one.samples} and {other.samples}")
    return notes


def find(board: Board, name: str) -> Row:
    """The row of a key, or of its beginning, or of a selection; of several states of one run the last, unless step or round is named."""
    if "=" not in name:
        keys = {id(row): [*row.state, *(key for keys in row.keys.values() for key in keys)] for row in board.rows}
        rows = [row for row in board.rows if name and any(key.startswith(name) for key in keys[id(row)])]
        if not rows:
            raise UserError(f'"{name}" begins no key of a row of {board.suite}; name a row by a key or as in recipe=sparse,drop=0.9')
        return _only(name, rows, "give more of it, or name the row as in recipe=sparse,drop=0.9")
    wanted = chosen([name], option="")
    places = {id(row): {word: text(value) for word, value in place(row).items()} for row in board.rows}
    for word, values in wanted.items():
        known = dict.fromkeys(there[word] for there in places.values() if word in there)
        if not known:
            raise unknown("axis", word, ["recipe", *board.axes, "step", "round"], f'"{name}"')
        for value in values:
            if value not in known:
                raise unknown("value", value, known, f'"{name}": {word}')
    rows = [row for row in board.rows if all(places[id(row)].get(word) in values for word, values in wanted.items())]
    if not rows:
        raise UserError(f'"{name}": no row of {board.suite} is all of that')
    rows = rows if {"step", "round"} & set(wanted) else [row for row in rows if row.last] or rows
    words = dict.fromkeys(word for row in rows for word in places[id(row)])
    open_ = [word for word in words if len({places[id(row)].get(word) for row in rows}) > 1]
    return _only(name, rows, f"choose by {', '.join(open_)} too")


def _only(name: str, rows: list[Row], advice: str) -> Row:
    if len(rows) > 1:
        raise UserError(f'"{name}" is {len(rows)} rows; {advice}')
    return rows[0]
