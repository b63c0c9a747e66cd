"""From a suite to stages: every recipe in every cell at every trial, shared prefixes once. Knows nothing of tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from rtbench import keys
from rtbench.errors import UserError, unknown
from rtbench.plugins import Catalogue
from rtbench.points import allowed, probings
from rtbench.resolve import Resolver
from rtbench.runs import Digests, Move, Run, Terms
from rtbench.suite import Suite, text
from rtbench.walk import walk

__all__ = ["PROTOCOL", "Digests", "Plan", "Point", "Stage", "allowed", "expand"]

PROTOCOL = {"init": 1, "load": 1, "train": 1, "prune": 1, "transfer": 1, "probe": 2}
"""The harness's own version of each verb: bumped when what it does to a stage changes its result."""
LIMIT = 1_000_000
"""More stages, or cells of the axes, than this are a mistake in the suite."""


@dataclass(frozen=True)
class Stage:
    """One call of one part on fixed inputs. `files` maps digests of loaded files to their paths and is not part of the key."""

    verb: str
    part: dict[str, Any]
    data: dict[str, Any]
    net: dict[str, Any]
    seed: int
    inputs: dict[str, str]
    files: dict[str, str] = field(default_factory=dict, compare=False)

    @cached_property
    def key(self) -> str:
        return keys.key(self.described())

    def described(self) -> dict[str, Any]:
        """The JSON value that the key hashes."""
        return {
            "verb": self.verb, "protocol": PROTOCOL[self.verb], "part": self.part, "data": self.data, "net": self.net,
            "seed": self.seed, "inputs": self.inputs,
        }  # fmt: skip

    def parents(self) -> set[str]:
        """Keys of the stages whose state this one reads."""
        return {ref.split("/")[0] for ref in self.inputs.values()}


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
    asked: int = 0
    """How many stages there would be if nothing were shared."""

    def add(self, stage: Stage) -> str:
        self.asked += 1
        self.stages.setdefault(stage.key, stage)
        if len(self.stages) > LIMIT:
            raise UserError(f"asks for more than {LIMIT:,} stages")
        return stage.key


def expand(suite: Suite, catalogue: Catalogue, digests: Digests, only: dict[str, list[str]] | None = None) -> Plan:
    """All runs of the suite. only: recipe or axis -> the values to keep. UserError names file and dotted path."""
    plan = Plan(suite)
    try:
        terms = Terms(suite, Resolver(suite.parts, catalogue), digests, probings(suite))
        chosen = _chosen(suite, only or {})
        for recipe in suite.recipes:
            if recipe in chosen.get("recipe", suite.recipes):
                for run in _runs(terms, recipe, chosen):
                    if len(run.moves) * suite.trials > LIMIT:
                        raise UserError(f"recipes.{recipe}: asks for more than {LIMIT:,} stages")
                    for trial in range(suite.trials):
                        _add(plan, run, trial)
        if not plan.points:
            raise UserError("nothing is left to run: no recipe has a state to measure, or --only excludes all")
    except UserError as error:
        raise UserError(f"{suite.path}: {error}") from None
    return plan


def _runs(terms: Terms, recipe: str, chosen: dict[str, list[str]]) -> Iterator[Run]:
    """The runs of a recipe, one per cell of the axes that it mentions, in the order of the file.

    What is mentioned may depend on the cell (an axis of part names). A walk learns it; cells that differ in nothing it looked at
    coincide with it, so each run is walked once.
    """
    axes = {axis: [v for v in values if text(v) in chosen.get(axis, [text(v)])] for axis, values in terms.suite.axes.items()}
    if math.prod(len(values) for values in axes.values()) > LIMIT:
        raise UserError(f"axes: have more than {LIMIT:,} combinations")
    walked: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        if any(tuple(text(cell[axis]) for axis in mentioned) in seen for mentioned, seen in walked.items()):
            continue
        run = walk(terms, recipe, cell)
        walked.setdefault(tuple(run.cell), set()).add(tuple(text(value) for value in run.cell.values()))
        if all(axis in run.cell for axis in chosen if axis != "recipe"):
            yield run


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


def _add(plan: Plan, run: Run, trial: int) -> None:
    """Adds the stages and points of one run at one trial."""
    made: list[str] = []
    for move in run.moves:
        made.append(plan.add(_stage(move, made, trial)))
    for order, state in enumerate(run.states):
        if state.probes:
            probes = {name: made[number] for name, number in state.probes.items()}
            plan.points.append(Point(run.recipe, run.cell, trial, state.step, state.round, order, made[state.move], probes))


def _stage(move: Move, made: list[str], trial: int) -> Stage:
    """The stage of a move; masks come with the weights unless a rewind took the weights from elsewhere."""
    inputs = {role: f"{made[number]}/{snapshot}" if snapshot else made[number] for role, (number, snapshot) in move.inputs.items()}
    if inputs.get("masks") == inputs.get("weights"):
        inputs.pop("masks", None)
    return Stage(move.verb, move.part, move.data, move.net, keys.seed(trial, *move.seed) if move.seed else 0, inputs, move.files)
