"""From a suite to runs and stages: every recipe in every cell at every trial, shared prefixes once. Knows nothing of tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rtbench import keys
from rtbench.errors import UserError, unknown
from rtbench.plugins import Catalogue
from rtbench.resolve import Resolver
from rtbench.suite import Suite

PROTOCOL = {"init": 1, "load": 1, "train": 1, "prune": 1, "transfer": 1, "probe": 1}
"""The harness's own version of each verb: bumped when what it does to a stage changes its result."""

Digests = Callable[[dict[str, Any], str], str]
"""Content digest of a resolved dataset part; the second argument is its dotted path."""


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
        return stage.key


def expand(suite: Suite, catalogue: Catalogue, digests: Digests, only: dict[str, list[str]] | None = None) -> Plan:
    """All runs of the suite. only: recipe or axis -> the values to keep. UserError names file and dotted path."""
    plan = Plan(suite)
    resolver = Resolver(suite.parts, catalogue)
    try:
        _check_only(suite, only or {})
        for recipe in suite.recipes:
            for cell in _cells(suite, recipe, resolver, digests):
                if _wanted(recipe, cell, only or {}):
                    for trial in range(suite.trials):
                        resolver.cell = cell
                        _Run(plan, resolver, digests, recipe, cell, trial).walk()
    except UserError as error:
        raise UserError(f"{suite.path}: {error}") from None
    if not plan.points:
        raise UserError(f"{suite.path}: nothing is left to run: no recipe has a state to measure, or --only excludes all")
    return plan


def _cells(suite: Suite, recipe: str, resolver: Resolver, digests: Digests) -> Iterator[dict[str, Any]]:
    """The cells of the axes that the recipe, its parts and its probes mention, in the order of the file.

    What is mentioned may depend on the cell (an axis of part names), so every combination is walked once and those that differ
    only in axes they do not mention coincide.
    """
    seen = set()
    for values in itertools.product(*suite.axes.values()):
        resolver.cell = full = dict(zip(suite.axes, values, strict=True))
        resolver.mentioned = set()
        _Run(Plan(suite), resolver, digests, recipe, full, 0).walk()
        cell = {axis: full[axis] for axis in suite.axes if axis in resolver.mentioned}
        name = keys.canonical([[axis, str(value)] for axis, value in cell.items()])
        if name not in seen:
            seen.add(name)
            yield cell


def _wanted(recipe: str, cell: dict[str, Any], only: dict[str, list[str]]) -> bool:
    return all(str(recipe if word == "recipe" else cell.get(word)) in values for word, values in only.items())


def _check_only(suite: Suite, only: dict[str, list[str]]) -> None:
    for word, values in only.items():
        known = list(suite.recipes) if word == "recipe" else [str(value) for value in suite.axes.get(word, [])]
        if not known:
            raise unknown("axis", word, ["recipe", *suite.axes], "--only")
        for value in values:
            if value not in known:
                raise unknown("value", value, known, f"--only {word}")


def allowed(where: dict[str, Any], recipe: str, cell: dict[str, Any]) -> bool:
    """Whether a `where` table (axis or "recipe" -> value or list of values) admits this recipe and cell."""
    for word, values in where.items():
        value = recipe if word == "recipe" else cell.get(word)
        if value not in (values if isinstance(values, list) else [values]):
            return False
    return True


class _Run:
    """Walks the steps of one recipe in one cell at one trial, adding stages and points to the plan."""

    def __init__(self, plan: Plan, resolver: Resolver, digests: Digests, recipe: str, cell: dict[str, Any], trial: int) -> None:
        self.plan, self.suite, self.resolver, self.digests = plan, plan.suite, resolver, digests
        self.recipe, self.cell, self.trial = recipe, cell, trial
        self.counts = {"init": 0, "train": 0, "prune": 0}
        self.origin = self.weights = self.masks = ""
        self.net: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.states: list[tuple[str, str, str, int | str, int]] = []  # verb, key, `as` name, step, round
        where = f"recipes.{recipe}.data"
        table = self.suite.recipes[recipe]
        self.data = self.dataset(table.get("data", self.suite.data), where if "data" in table else "data")

    def walk(self) -> None:
        where = f"recipes.{self.recipe}.steps"
        self.steps(self.suite.recipes[self.recipe]["steps"], where)
        if not self.weights:
            raise UserError(f"{where}: begin with init or load")
        self.measure()

    def steps(self, steps: Any, where: str) -> None:
        if not isinstance(steps, list):
            raise UserError(f"{where}: {steps!r} is not a list of steps")
        for i, step in enumerate(steps):
            self.step(step, f"{where}.{i}")

    def step(self, step: Any, where: str) -> None:
        words = ("init", "load", "train", "prune", "rewind", "transfer", "repeat")
        if not isinstance(step, dict):
            raise UserError(f"{where}: {step!r} is not a step such as {{ train = \"fit\" }}")
        verbs = [word for word in step if word in words]
        if not verbs:
            raise unknown("step", next(iter(step), ""), words, where)
        if len(verbs) > 1:
            raise UserError(f"{where}: is {' and '.join(verbs)} at once; write two steps")
        verb = verbs[0]
        if verb not in ("init", "load") and not self.weights:
            raise UserError(f"{where}: begin with init or load")
        rest = {name: value for name, value in step.items() if name not in (verb, "as")}
        getattr(self, verb)(step[verb], rest, f"{where}.{verb}")
        if "as" in step:
            if not isinstance(step["as"], str) or verb in ("repeat", "rewind"):
                raise UserError(f"{where}.as: names the state of one init, load, train, prune or transfer step")
            self.names[step["as"]] = self.weights
            if self.states and self.states[-1][1] == self.weights:
                self.states[-1] = (*self.states[-1][:2], step["as"], step["as"], self.states[-1][4])

    def init(self, ref: Any, extra: dict[str, Any], where: str) -> None:
        self.net = self.resolver("architecture", ref, where, extra)
        self.origin = self.fresh()
        self.begin("init", self.origin)

    def load(self, path: Any, extra: dict[str, Any], where: str) -> None:
        known = ("net", "strict", "rename", "masks")
        for word in extra:
            if word not in known:
                raise unknown("entry", word, known, f"{where}.{word}")
        self.net = self.resolver("architecture", extra.get("net", "net"), f"{where}.net")
        part, files = load_part(self.resolver.substitute(path, where), extra, where, Path(self.suite.path).parent)
        self.origin = self.add("load", part, {}, 0, files)
        self.begin("load", self.origin)

    def transfer(self, ref: Any, extra: dict[str, Any], where: str) -> None:
        if extra:
            raise unknown("entry", next(iter(extra)), ["transfer", "as"], where)
        self.data = self.dataset(ref, where)
        self.counts["init"] += 1
        self.origin = self.add("transfer", {}, self.inputs(), self.seed("init"))
        self.begin("transfer", self.origin)

    def begin(self, verb: str, key: str) -> None:
        self.weights = self.masks = key
        self.note(verb)

    def train(self, ref: Any, extra: dict[str, Any], where: str) -> None:
        part = self.resolver("trainer", ref, where, extra)
        self.counts["train"] += 1
        self.weights = self.masks = self.add("train", part, self.inputs(), self.seed("train"))
        self.note("train")

    def prune(self, ref: Any, extra: dict[str, Any], where: str) -> None:
        part = self.resolver("pruner", ref, where, extra, turn=self.counts["prune"])
        self.counts["prune"] += 1
        self.weights = self.masks = self.add("prune", part, self.inputs(), self.seed("prune"))
        self.note("prune")

    def rewind(self, target: Any, extra: dict[str, Any], where: str) -> None:
        if extra:
            raise unknown("entry", next(iter(extra)), ["rewind"], where)
        target = self.resolver.substitute(target, where)
        name, _, snapshot = str(target).partition("/")
        if name == "init":
            self.weights = self.origin
        elif name == "fresh":
            self.weights = self.fresh()
        elif name in self.names:
            self.weights = self.names[name]
        elif name != "last":
            raise unknown("state to rewind to", target, ["init", "fresh", "last", *self.names], where)
        if snapshot:
            self.check_snapshot(name, snapshot, where)
            self.weights = f"{self.weights}/{snapshot}"

    def check_snapshot(self, name: str, snapshot: str, where: str) -> None:
        if name not in self.names:
            raise UserError(f'{where}: "{name}" has no snapshots; give the train step a name with `as`')
        stage = self.plan.stages[self.names[name]]
        known = stage.part.get("knobs", {}).get("snapshots")
        if known is not None and snapshot not in known:
            raise unknown("snapshot", snapshot, known, where)

    def repeat(self, times: Any, extra: dict[str, Any], where: str) -> None:
        times = self.resolver.substitute(times, where)
        if type(times) is not int or times < 0:
            raise UserError(f"{where}: {times!r} is not a number of rounds")
        for word in extra:
            if word != "steps":
                raise unknown("entry", word, ["repeat", "steps"], f"{where}.{word}")
        for _ in range(times):
            self.steps(extra.get("steps"), f"{where.removesuffix('.repeat')}.steps")

    def fresh(self) -> str:
        self.counts["init"] += 1
        return self.add("init", self.net, {}, self.seed("init"))

    def dataset(self, ref: Any, where: str) -> dict[str, Any]:
        part = self.resolver("dataset", ref, where)
        return {**part, "digest": self.digests(part, where)}

    def seed(self, verb: str) -> int:
        return keys.seed(self.trial, verb, self.counts[verb])

    def inputs(self) -> dict[str, str]:
        """Masks come with the weights unless a rewind took the weights from elsewhere."""
        return {"weights": self.weights} if self.masks == self.weights else {"weights": self.weights, "masks": self.masks}

    def add(self, verb: str, part: dict[str, Any], inputs: dict[str, str], seed: int, files: dict[str, str] | None = None) -> str:
        return self.plan.add(Stage(verb, part, self.data, self.net, seed, inputs, files or {}))

    def note(self, verb: str) -> None:
        self.states.append((verb, self.weights, "", self.counts["train"], self.counts["prune"]))

    def measure(self) -> None:
        probes = [(name, *self.probe(name)) for name in self.suite.probes]
        for order, (verb, key, name, step, round_) in enumerate(self.states):
            last = order == len(self.states) - 1
            chosen = {}
            for probe, at, part in probes:
                if part is not None and _is_at(at, verb, name, round_, last, order == 0):
                    seed = keys.seed(self.trial, "probe", part)
                    stage = self.plan.stages[key]
                    chosen[probe] = self.plan.add(Stage("probe", part, stage.data, stage.net, seed, {"weights": key}))
            if chosen:
                self.plan.points.append(Point(self.recipe, self.cell, self.trial, step, round_, order, key, chosen))

    def probe(self, name: str) -> tuple[list[Any], dict[str, Any] | None]:
        """Where a probe is measured, and its part; None where its `where` excludes this cell."""
        table, place = dict(self.suite.probes[name]), f"probes.{name}"
        at, where = table.pop("at", ["train", "last"]), table.pop("where", {})
        at = at if isinstance(at, list) else [at]
        known = ["train", "prune", "init", "load", "transfer", "first", "last", *self.named()]
        for word in at:
            if type(word) is not int and word not in known:
                raise unknown("point", word, known, f"{place}.at")
        if not isinstance(where, dict):
            raise UserError(f"{place}.where: {where!r} is not a table of axis = value")
        for word, values in where.items():
            known = list(self.suite.recipes) if word == "recipe" else self.suite.axes.get(word, [])
            if not known:
                raise unknown("axis", word, ["recipe", *self.suite.axes], f"{place}.where")
            for value in values if isinstance(values, list) else [values]:
                if value not in known:
                    raise unknown("value", value, map(str, known), f"{place}.where.{word}")
        # An axis that this recipe does not have cannot exclude it: a dense control is measured beside its sparse children.
        if not allowed({word: values for word, values in where.items() if word in ("recipe", *self.cell)}, self.recipe, self.cell):
            return at, None
        return at, self.resolver("probe", table, place)

    def named(self) -> list[str]:
        """Every `as` name of the suite: a probe at one of them is measured in the recipes that have it."""
        def names(steps: Any) -> Iterator[str]:
            for step in steps if isinstance(steps, list) else []:
                if isinstance(step, dict):
                    yield from [step["as"]] if "as" in step else []
                    yield from names(step.get("steps"))

        return [name for recipe in self.suite.recipes.values() for name in names(recipe["steps"])]


def _is_at(at: list[Any], verb: str, name: str, round_: int, last: bool, first: bool) -> bool:
    for word in at:
        if type(word) is int and word == round_ and verb == "train":
            return True
        if word == verb or (name and word == name) or (word == "last" and last) or (word == "first" and first):
            return True
    return False


def load_part(path: Any, options: dict[str, Any], where: str, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The part of a `load` stage, named by the file's digest, and where that file lies; UserError if it is missing."""
    if not isinstance(path, str):
        raise UserError(f"{where}: {path!r} is not a file name")
    file = Path(path).expanduser()
    file = file if file.is_absolute() else folder / file
    if not file.is_file():
        raise UserError(f'{where}: no checkpoint file "{file}"')
    strict, rename, masks = options.get("strict", True), options.get("rename", {}), options.get("masks", "file")
    if not isinstance(strict, bool):
        raise UserError(f"{where}: strict = {strict!r} is not true or false")
    if not isinstance(rename, dict) or not all(isinstance(value, str) for value in rename.values()):
        raise UserError(f"{where}: rename = {rename!r} is not a table of pattern = replacement")
    if masks not in ("file", "nonzero", "ones"):
        raise unknown("choice", masks, ["file", "nonzero", "ones"], f"{where}.masks")
    digest = keys.file_digest(file)
    knobs = {"sha256": digest, "strict": strict, "rename": rename, "masks": masks}
    return {"use": "load", "version": 1, "knobs": knobs}, {digest: str(file.resolve())}
