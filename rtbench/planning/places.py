"""The words of `at` and `where`: which states of a run are meant, and which runs."""

from __future__ import annotations

from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.planning.runs import State
from rtbench.planning.suite import Suite, text

PLACES = ("train", "prune", "init", "load", "transfer", "first", "last")
"""What `at` may say besides rounds and the names that steps give their states."""


def check_point(word: Any, known: list[str], place: str) -> None:
    """UserError unless a word of `at` is a number of rounds or one of the names."""
    if type(word) is int and word < 0:
        raise UserError(f"{place}: {word} is not a number of rounds")
    if type(word) is not int and word not in known:
        raise unknown("point", text(word), known, place)


def check_where(suite: Suite, where: Any, place: str) -> None:
    """UserError unless `where` is a table of axes (or "recipe") and values that they have."""
    if not isinstance(where, dict):
        raise UserError(f"{place}: {where!r} is not a table of axis = value")
    for word, values in where.items():
        if word != "recipe" and word not in suite.axes:
            raise unknown("axis", word, ["recipe", *suite.axes], place)
        # Whoever narrows an axis for one run need not rewrite every `where` that names its other values.
        axis = [*suite.axes.get(word, []), *listed(suite.written.get(word, []))]
        known = list(suite.recipes) if word == "recipe" else [text(value) for value in axis]
        for value in listed(values):
            if text(value) not in known:
                raise unknown("value", text(value), known, f"{place}.{word}")


def listed(value: Any) -> list[Any]:
    """A list as it is, anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def allowed(where: dict[str, Any], recipe: str, cell: dict[str, Any]) -> bool:
    """Whether a `where` table (axis or "recipe" -> value or list of values) admits this recipe and cell."""
    for word, values in where.items():
        value = recipe if word == "recipe" else cell.get(word)
        if text(value) not in [text(item) for item in listed(values)]:
            return False
    return True


def admits(where: dict[str, Any], recipe: str, cell: dict[str, Any]) -> bool:
    """Like `allowed`, but an axis that the cell does not have excludes nothing."""
    return allowed({word: values for word, values in where.items() if word == "recipe" or word in cell}, recipe, cell)


def is_at(at: list[str | int], state: State, last: bool, first: bool) -> bool:
    """Whether a state is one of the points: made by this verb, of this name, after so many prunings, last or first of its run."""
    words = {state.verb, state.step} | ({"last"} if last else set()) | ({"first"} if first else set())
    return any(word == state.round and state.verb == "train" if type(word) is int else word in words for word in at)
