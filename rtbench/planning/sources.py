"""Whose samples a probe borrows: the selectors of `from`, checked once for the whole suite, and the states that they mean."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

from rtbench.errors import UserError
from rtbench.planning.places import check_point, check_where, is_at, listed
from rtbench.planning.runs import Run, Source, State
from rtbench.planning.suite import Suite, text

Found = list[tuple[Run, int]]
"""States: a run, and the number of the move that left the state."""


def read_sources(suite: Suite, given: Any, points: list[str], place: str) -> list[Source] | Literal["all", "origin"]:
    """The sources of one probe; UserError for a recipe, axis, value or point that the suite does not have."""
    if given in ("all", "origin"):
        return "all" if given == "all" else "origin"
    tables = [(table, f"{place}.{i}") for i, table in enumerate(given)] if isinstance(given, list) else [(given, place)]
    if not tables:
        raise UserError(f"{place}: is empty, so there is nobody to borrow from")
    found: dict[str, Source] = {}
    for table, where in tables:
        for source in _sources(suite, table, points, where):
            if source.name in found:
                raise UserError(f'{where}: is called "{source.name}" like {found[source.name].place}; give it a name with as = "..."')
            found[source.name] = source
    return list(found.values())


def _sources(suite: Suite, table: Any, points: list[str], place: str) -> Iterator[Source]:
    """One source for each choice among the lists of a selector. Values that an override took out of their axis are left out."""
    if not isinstance(table, dict):
        raise UserError(f'{place}: {table!r} is neither "all" nor "origin" nor a table such as {{ recipe = "dense" }}')
    cell = {word: value for word, value in table.items() if word not in ("at", "as")}
    check_where(suite, cell, place)
    at, name = table.get("at", "last"), table.get("as")
    check_point(at, points, f"{place}.at")
    known = {axis: {text(value): value for value in values} for axis, values in {**suite.axes, "recipe": list(suite.recipes)}.items()}
    kept = {word: [known[word][text(value)] for value in listed(values) if text(value) in known[word]] for word, values in cell.items()}
    if name is not None and (not isinstance(name, str) or not name or any(isinstance(values, list) for values in cell.values())):
        raise UserError(f"{place}.as: {name!r} is not the name of one source")
    if not table:
        raise UserError(f'{place}: is empty; the measured run itself is {{ as = "itself" }}')
    for values in itertools.product(*kept.values()):
        words = [*map(text, values), *([text(at)] if "at" in table else [])]
        yield Source(name or "-".join(words), dict(zip(kept, values, strict=True)), at, place)


class Directory:
    """The runs of a suite, found by recipe and axes without going through all of them."""

    def __init__(self, runs: list[Run]) -> None:
        self._groups: dict[tuple[str, tuple[str, ...]], list[tuple[int, Run]]] = {}
        for number, run in enumerate(runs):
            self._groups.setdefault((run.recipe, tuple(run.own)), []).append((number, run))
        self._found: dict[tuple[str, tuple[str, ...], tuple[str, ...]], dict[tuple[int, ...], list[tuple[int, Run]]]] = {}

    def alike(self, source: Source, run: Run) -> list[Run]:
        """Those that are as the source says and, where it says nothing, as `run`; in the order of the suite."""
        named = {axis: value for axis, value in source.cell.items() if axis != "recipe"}
        wanted = {**run.cell, **named}
        found: list[tuple[int, Run]] = []
        for recipe, axes in self._groups:
            if source.cell.get("recipe", recipe) == recipe and named.keys() <= set(axes):
                by = tuple(axis for axis in axes if axis in wanted)
                found += self._by(recipe, axes, by).get(tuple(id(wanted[axis]) for axis in by), [])
        return [other for _, other in sorted(found, key=lambda entry: entry[0])]

    def _by(self, recipe: str, axes: tuple[str, ...], by: tuple[str, ...]) -> dict[tuple[int, ...], list[tuple[int, Run]]]:
        """The runs of a group by their values on some axes; all values are the very objects that the suite's axes hold."""
        if (recipe, axes, by) not in self._found:
            found = self._found.setdefault((recipe, axes, by), {})
            for number, run in self._groups[recipe, axes]:
                found.setdefault(tuple(id(run.own[axis]) for axis in by), []).append((number, run))
        return self._found[recipe, axes, by]


def lenders(source: Source, run: Run, runs: Directory) -> Found:
    """The states that a source means for a run. What it does not name is as in the run; axes that the run lacks may be anything.

    UserError where no run is so, or none of those has such a state.
    """
    alike = runs.alike(source, run)
    mine = [other for other in alike if other.recipe == run.recipe]
    alike = mine if "recipe" not in source.cell and mine else alike
    if not alike:
        who = label(run.recipe, run.cell)
        raise UserError(f"{source.place}: no run is so for {who}; choose another source, or keep the probe away with `where`")
    found = [
        (other, state.move)
        for other in alike
        for order, state in enumerate(other.states)
        if is_at([source.at], state, order == len(other.states) - 1, order == 0)
    ]
    if not found:
        raise UserError(f'{source.place}.at: {label(alike[0].recipe, alike[0].own)} has no state "{text(source.at)}"')
    return found


def everyone(suite: Suite, run: Run, runs: list[Run]) -> Iterator[tuple[str, Found]]:
    """Every run on the data of `run` at its last state, named by recipe and the axes that have several values."""
    data = run.moves[0].data
    for other in runs:
        last = other.states[-1].move
        if other.moves[last].data == data:
            values = [text(value) for axis, value in other.own.items() if len(suite.axes[axis]) > 1]
            yield "-".join([other.recipe] * (len(suite.recipes) > 1 or not values) + values), [(other, last)]


def origin(run: Run, state: State) -> Found:
    """The initialisation (init, load, transfer or fresh) that the weights of a state descend from."""
    number = state.move
    while run.moves[number].verb in ("train", "prune"):
        number, _ = run.moves[number].inputs["weights"]
    return [(run, number)]


def label(recipe: str, cell: dict[str, Any]) -> str:
    """A run in a message."""
    return ", ".join([f'recipe "{recipe}"', *(f"{axis} {text(value)}" for axis, value in cell.items())])
