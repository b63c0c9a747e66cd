"""Where probes are measured: their `at`, `where` and `from`, checked once for the whole suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rtbench.errors import UserError
from rtbench.parts.kinds import lender
from rtbench.planning.places import PLACES, admits, check_point, check_where, is_at, listed
from rtbench.planning.runs import Probing, Run, Terms
from rtbench.planning.sources import read_sources
from rtbench.planning.suite import Suite


def known_points(suite: Suite) -> list[str]:
    """The words that `at` may say in this suite."""
    return [*PLACES, *dict.fromkeys(name for recipe in suite.recipes.values() for name in _names(recipe["steps"]))]


def probings(suite: Suite) -> list[Probing]:
    """The suite's probes; UserError for a point, axis or value that the suite does not have."""
    known = known_points(suite)
    found = []
    for name, table in suite.probes.items():
        part = {word: value for word, value in table.items() if word not in ("at", "where", "from")}
        at, where = table.get("at", ["train", "last"]), table.get("where", {})
        at = listed(at)
        if not at:
            raise UserError(f"probes.{name}.at: is empty, so it would never be measured")
        for word in at:
            check_point(word, known, f"probes.{name}.at")
        check_where(suite, where, f"probes.{name}.where")
        sources = read_sources(suite, table["from"], known, f"probes.{name}.from") if "from" in table else None
        found.append(Probing(name, at, where, part, sources))
    return found


def _names(steps: Any) -> Iterator[str]:
    """Every `as` name of a recipe: a probe at one of them is measured in the recipes that have it."""
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict):
            yield from [step["as"]] if isinstance(step.get("as"), str) else []
            yield from _names(step.get("steps"))


def measure(terms: Terms, run: Run) -> None:
    """Sets the run's cell and adds the moves of its probes.

    `where` excludes by axes that the run has: those that its steps, their parts and its probes mention. One that it lacks cannot: a
    dense control is measured beside its sparse children.
    """
    resolver = terms.resolver
    found: dict[str, dict[str, Any] | UserError] = {}
    own = {axis: value for axis, value in resolver.cell.items() if axis in resolver.mentioned}
    for probing in terms.probings:
        if admits(probing.where, run.recipe, own):
            try:
                found[probing.name] = resolver("probe", probing.part, f"probes.{probing.name}")
            except UserError as error:  # no matter if an axis that only probes mention excludes this cell
                found[probing.name] = error
    run.own, run.cell = own, {axis: value for axis, value in resolver.cell.items() if axis in resolver.mentioned}
    chosen = []
    for probing in terms.probings:
        if probing.name in found and admits(probing.where, run.recipe, run.cell):
            part = found[probing.name]
            if isinstance(part, UserError):
                raise part
            chosen.append((probing, part, _borrows(terms, probing, part)))
    for order, state in enumerate(run.states):
        for probing, part, borrows in chosen:
            if not is_at(probing.at, state, order == len(run.states) - 1, order == 0):
                continue
            if borrows:
                state.borrowing[probing.name] = probing, part
            else:
                state.probes[probing.name] = len(run.moves)
                inputs = {"weights": (state.move, "")}
                run.moves.append(run.moves[state.move]._replace(verb="probe", part=part, seed=("probe", part), inputs=inputs, files={}))


def _borrows(terms: Terms, probing: Probing, part: dict[str, Any]) -> bool:
    """Whether it needs other runs; UserError unless the suite says which, and only then."""
    borrows = lender(terms.resolver.catalogue.get("probe", part["use"]).function) is not None
    if borrows and probing.sources is None:
        raise UserError(f'probes.{probing.name}.from: is missing; "{part["use"]}" needs other runs, as in from = [{{ recipe = "dense" }}]')
    if probing.sources is not None and not borrows:
        raise UserError(f'probes.{probing.name}.from: "{part["use"]}" needs no other runs')
    return borrows
