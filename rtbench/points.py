"""Where probes are measured: the words of `at` and `where`, checked once for the whole suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.runs import Probing, Run, State, Terms
from rtbench.suite import Suite, text

PLACES = ("train", "prune", "init", "load", "transfer", "first", "last")
"""What `at` may say besides rounds and the names that steps give their states."""


def probings(suite: Suite) -> list[Probing]:
    """The suite's probes; UserError for a point, axis or value that the suite does not have."""
    known = [*PLACES, *dict.fromkeys(name for recipe in suite.recipes.values() for name in _names(recipe["steps"]))]
    found = []
    for name, table in suite.probes.items():
        part = {word: value for word, value in table.items() if word not in ("at", "where")}
        at, where = table.get("at", ["train", "last"]), table.get("where", {})
        at = _list(at)
        if not at:
            raise UserError(f"probes.{name}.at: is empty, so it would never be measured")
        for word in at:
            if type(word) is int and word < 0:
                raise UserError(f"probes.{name}.at: {word} is not a number of rounds")
            if type(word) is not int and word not in known:
                raise unknown("point", text(word), known, f"probes.{name}.at")
        check_where(suite, where, f"probes.{name}.where")
        found.append(Probing(name, at, where, part))
    return found


def _names(steps: Any) -> Iterator[str]:
    """Every `as` name of a recipe: a probe at one of them is measured in the recipes that have it."""
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict):
            yield from [step["as"]] if isinstance(step.get("as"), str) else []
            yield from _names(step.get("steps"))


def check_where(suite: Suite, where: Any, place: str) -> None:
    """UserError unless `where` is a table of axes (or "recipe") and values that they have."""
    if not isinstance(where, dict):
        raise UserError(f"{place}: {where!r} is not a table of axis = value")
    for word, values in where.items():
        if word != "recipe" and word not in suite.axes:
            raise unknown("axis", word, ["recipe", *suite.axes], place)
        # Whoever narrows an axis for one run need not rewrite every `where` that names its other values.
        axis = [*suite.axes.get(word, []), *_list(suite.written.get(word, []))]
        known = list(suite.recipes) if word == "recipe" else [text(value) for value in axis]
        for value in _list(values):
            if text(value) not in known:
                raise unknown("value", text(value), known, f"{place}.{word}")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def allowed(where: dict[str, Any], recipe: str, cell: dict[str, Any]) -> bool:
    """Whether a `where` table (axis or "recipe" -> value or list of values) admits this recipe and cell."""
    for word, values in where.items():
        value = recipe if word == "recipe" else cell.get(word)
        if text(value) not in [text(item) for item in _list(values)]:
            return False
    return True


def is_at(at: list[str | int], state: State, last: bool, first: bool) -> bool:
    """Whether a state is one of the points: made by this verb, of this name, after so many prunings, last or first of its run."""
    words = {state.verb, state.step} | ({"last"} if last else set()) | ({"first"} if first else set())
    return any(word == state.round and state.verb == "train" if type(word) is int else word in words for word in at)


def measure(terms: Terms, run: Run) -> None:
    """Sets the run's cell and adds the moves of its probes.

    `where` excludes by axes that the run has: those that its steps, their parts and its probes mention. One that it lacks cannot: a
    dense control is measured beside its sparse children.
    """
    resolver = terms.resolver
    found: dict[str, dict[str, Any] | UserError] = {}
    own = {axis: value for axis, value in resolver.cell.items() if axis in resolver.mentioned}
    for probing in terms.probings:
        if _admits(probing, run.recipe, own):
            try:
                found[probing.name] = resolver("probe", probing.part, f"probes.{probing.name}")
            except UserError as error:  # no matter if an axis that only probes mention excludes this cell
                found[probing.name] = error
    run.cell = {axis: value for axis, value in resolver.cell.items() if axis in resolver.mentioned}
    chosen = []
    for probing in terms.probings:
        if probing.name in found and _admits(probing, run.recipe, run.cell):
            part = found[probing.name]
            if isinstance(part, UserError):
                raise part
            chosen.append((probing, part, ("probe", part)))
    for order, state in enumerate(run.states):
        for probing, part, seed in chosen:
            if is_at(probing.at, state, order == len(run.states) - 1, order == 0):
                state.probes[probing.name] = len(run.moves)
                inputs = {"weights": (state.move, "")}
                run.moves.append(run.moves[state.move]._replace(verb="probe", part=part, seed=seed, inputs=inputs, files={}))


def _admits(probing: Probing, recipe: str, cell: dict[str, Any]) -> bool:
    return allowed({word: values for word, values in probing.where.items() if word == "recipe" or word in cell}, recipe, cell)
