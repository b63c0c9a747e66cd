"""From a suite to stages: every recipe in every cell at every trial, shared prefixes once. Knows nothing of tensors."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rtbench.errors import UserError, unknown
from rtbench.planning.borrow import Borrowing
from rtbench.planning.controls import Claim, claims, read
from rtbench.planning.places import allowed, check_where, listed
from rtbench.planning.points import known_points, probings
from rtbench.planning.resolve import Resolver
from rtbench.planning.runs import Digests, Run, State, Terms
from rtbench.planning.sources import Directory
from rtbench.planning.stages import PROTOCOL, Stage, stage_of
from rtbench.planning.suite import Suite, text
from rtbench.planning.walk import walk
from rtbench.plugins import Catalogue

__all__ = ["PROTOCOL", "Digests", "Plan", "Point", "Stage", "allowed", "expand"]

LIMIT = 1_000_000
"""More stages, or cells of the axes, than this are a mistake in the suite."""


class Point(NamedTuple):
    """A state that is measured: where it stands in which run, its stage, and its probes' stages by probe name."""

    recipe: str
    cell: dict[str, Any]
    trial: int
    step: int | str
    round: int
    order: int
    key: str
    probes: dict[str, str]


@dataclass
class Plan:
    """Stages by key, parents before children, and the points that the board joins with their records."""

    suite: Suite
    stages: dict[str, Stage] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    """What the suite's [tickets] judge, and what it is compared with."""
    naive: Counter[str] = field(default_factory=Counter)
    """How many stages of each verb there would be if nothing were shared."""

    @property
    def asked(self) -> int:
        """How many stages there would be in all if nothing were shared."""
        return self.naive.total()

    def add(self, stage: Stage) -> str:
        self.naive[stage.verb] += 1
        self.stages.setdefault(stage.key, stage)
        if len(self.stages) > LIMIT:
            raise UserError(f"asks for more than {LIMIT:,} stages")
        return stage.key

    def places(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of the board, and their trials, by the key of each stage that they show."""
        suite, found = self.suite, dict[str, list[dict[str, Any]]]()
        for point in self.points:
            place = {"suite": suite.name, "profile": suite.profile, "recipe": point.recipe, "cell": point.cell, "step": point.step,
                     "round": point.round, "trial": point.trial, "trials": suite.trials}  # fmt: skip
            for key in dict.fromkeys([point.key, *point.probes.values()]):
                found.setdefault(key, []).append(place)
        return found

    def trainings(self, key: str, last: bool = False) -> list[Stage]:
        """The trainings that a stage rests on, itself among them, each once. last: without those that another one went on from."""
        found, todo = dict[str, Stage](), [key]
        while todo:
            here = todo.pop()
            if here not in found:
                found[here] = stage = self.stages[here]
                todo += () if last and stage.verb == "train" else stage.parents()
        return [stage for stage in found.values() if stage.verb == "train"]


def expand(suite: Suite, catalogue: Catalogue, digests: Digests, only: dict[str, list[str]] | None = None) -> Plan:
    """All runs of the suite. only: recipe or axis -> the values to keep. UserError names file and dotted path."""
    plan = Plan(suite)
    try:
        terms = Terms(suite, Resolver(suite.parts, catalogue), digests, probings(suite))
        keep = _chosen(suite, only or {})
        if suite.tickets or any(probing.sources is not None for probing in terms.probings):
            _linked(plan, terms, keep)
        else:
            for run in _kept(list(_planned(terms, keep)), keep):
                for trial in range(suite.trials):
                    _add(plan, run, trial, {})
        if not plan.points:
            raise UserError("nothing is left to run: no recipe has a state to measure, or --only excludes all")
    except UserError as error:
        raise UserError(f"{suite.path}: {error}") from None
    return plan


def _planned(terms: Terms, chosen: dict[str, list[str]]) -> Iterator[Run]:
    """The chosen runs of all recipes."""
    for recipe in terms.suite.recipes:
        if recipe in chosen.get("recipe", terms.suite.recipes):
            for run in _runs(terms, recipe, chosen):
                if len(run.moves) * terms.suite.trials > LIMIT:
                    raise UserError(f"recipes.{recipe}: asks for more than {LIMIT:,} stages")
                yield run


def _linked(plan: Plan, terms: Terms, chosen: dict[str, list[str]]) -> None:
    """Adds the chosen runs, the controls of the tickets among them, and what their probes borrow from others, chosen or not."""
    runs = list(_planned(terms, {}))
    mine = [run for run in runs if _is_chosen(run, chosen)] if plan.suite.tickets else _kept(runs, chosen)
    borrowing = Borrowing(plan, terms.resolver.catalogue, Directory(runs), mine)
    if plan.suite.tickets:
        plan.claims, mine[:] = claims(read(plan.suite, known_points(plan.suite)), runs, mine)
    places = [(run, trial, _add(plan, run, trial, borrowing.keys(run, trial))) for run in mine for trial in range(plan.suite.trials)]
    for run, trial, points in places:
        for state, point in points:
            point.probes.update(borrowing.measure(run, state, trial))


def _kept(runs: list[Run], chosen: dict[str, list[str]]) -> list[Run]:
    """The chosen runs, and the dense ones without such an axis, unless another recipe is asked for: what the others are seen beside."""
    if not any(_is_chosen(run, chosen) for run in runs):
        return []
    return [run for run in runs if _is_chosen(run, chosen, lacking=_is_dense(run))]


def _is_dense(run: Run) -> bool:
    return all(move.verb not in ("prune", "load") for move in run.moves)


def _is_chosen(run: Run, chosen: dict[str, list[str]], lacking: bool = False) -> bool:
    """Whether a run has only values that are asked for. lacking: an axis that it does not have is no obstacle."""
    place = _place(run)
    return all(place[word] in values if word in place else lacking for word, values in chosen.items())


def _place(run: Run) -> dict[str, str]:
    """What `--only` chooses by."""
    return {"recipe": run.recipe, **{axis: text(value) for axis, value in run.cell.items()}}


def _runs(terms: Terms, recipe: str, chosen: dict[str, list[str]]) -> Iterator[Run]:
    """The runs of a recipe, one per cell of the axes that it mentions, in the order of the file.

    What is mentioned may depend on the cell (an axis of part names). A walk learns it; cells that differ in nothing it looked at
    coincide with it, so each run is walked once.
    """
    axes = {axis: [v for v in values if text(v) in chosen.get(axis, [text(v)])] for axis, values in terms.suite.axes.items()}
    where = _only_where(terms.suite, recipe)
    axes = {axis: [v for v in values if text(v) in where.get(axis, [text(v)])] for axis, values in axes.items()}
    if math.prod(len(values) for values in axes.values()) > LIMIT:
        raise UserError(f"axes: have more than {LIMIT:,} combinations")
    walked: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        if any(tuple(text(cell[axis]) for axis in mentioned) in seen for mentioned, seen in walked.items()):
            continue
        run = walk(terms, recipe, cell)
        if aloof := where.keys() - run.cell.keys():
            raise UserError(f"recipes.{recipe}.where.{min(aloof)}: the recipe does not depend on this axis, so it cannot choose by it")
        walked.setdefault(tuple(run.cell), set()).add(tuple(text(value) for value in run.cell.values()))
        yield run


def _only_where(suite: Suite, recipe: str) -> dict[str, list[str]]:
    """The values of axes in which alone a recipe is run, as `text` writes them; UserError for what the suite does not have."""
    where = suite.recipes[recipe].get("where", {})
    if "recipe" in where:
        raise UserError(f"recipes.{recipe}.where.recipe: a recipe is run in cells of the axes; leave this out")
    check_where(suite, where, f"recipes.{recipe}.where")
    return {axis: [text(value) for value in listed(values)] for axis, values in where.items()}


def _chosen(suite: Suite, only: dict[str, list[str]]) -> dict[str, list[str]]:
    """What `--only` keeps, each value as `text` writes it."""
    chosen = {}
    for word, values in only.items():
        if word != "recipe" and word not in suite.axes:
            raise unknown("axis", word, ["recipe", *suite.axes], "--only")
        known = list(suite.recipes) if word == "recipe" else [text(value) for value in suite.axes[word]]
        chosen[word] = [text(value) for value in (values if isinstance(values, list | tuple) else [values])]
        for value in chosen[word]:
            if value not in known:
                raise unknown("value", value, known, f"--only {word}")
    return chosen


def _add(plan: Plan, run: Run, trial: int, made: dict[int, str]) -> list[tuple[State, Point]]:
    """Adds the stages and points of one run at one trial but for what is borrowed; fills `made` with the keys of its moves."""
    for number, move in enumerate(run.moves):
        made[number] = plan.add(stage_of(move, made, trial))
    points = []
    for order, state in enumerate(run.states):
        if state.probes or state.borrowing:
            probes = {name: made[number] for name, number in state.probes.items()}
            point = Point(run.recipe, run.cell, trial, state.step, state.round, order, made[state.move], probes)
            points.append((state, point))
    plan.points += [point for _, point in points]
    return points
