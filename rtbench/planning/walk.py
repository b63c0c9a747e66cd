"""One run: the walk through a recipe's steps in one cell of the axes. A trial turns its moves into stages."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.planning.places import PLACES
from rtbench.planning.points import measure
from rtbench.planning.resolve import load_part
from rtbench.planning.runs import Move, Ref, Run, State, Terms

STEPS = 100_000
"""More steps than this in one run are a mistake in a `repeat`."""
NAME = re.compile(r"[^\W\d][\w-]*")


def walk(terms: Terms, recipe: str, cell: dict[str, Any]) -> Run:
    """The run of a recipe in a cell of all axes; UserError with the dotted path of the first mistake."""
    terms.resolver.cell, terms.resolver.mentioned = cell, set()
    walking = _Walk(terms, recipe)
    where = f"recipes.{recipe}.steps"
    walking.steps(terms.suite.recipes[recipe]["steps"], where)
    if not walking.run.moves:
        raise UserError(f"{where}: begin with init or load")
    measure(terms, walking.run)
    return walking.run


class _Walk:
    def __init__(self, terms: Terms, recipe: str) -> None:
        self.terms, self.resolver, self.run = terms, terms.resolver, Run(recipe)
        self.verbs = {
            "init": self.init, "load": self.load, "train": self.train, "prune": self.prune, "rewind": self.rewind,
            "transfer": self.transfer, "repeat": self.repeat,
        }  # fmt: skip
        self.counts = {"init": 0, "train": 0, "prune": 0, "step": 0}
        self.net: dict[str, Any] = {}
        self.names: dict[str, int] = {}
        self.origin = self.latest = 0
        self.weights: Ref = (0, "")
        table = terms.suite.recipes[recipe]
        self.data = self.dataset(table.get("data", terms.suite.data), f"recipes.{recipe}.data" if "data" in table else "data")

    def steps(self, steps: Any, where: str) -> None:
        if not isinstance(steps, list) or not steps:
            raise UserError(f"{where}: {steps!r} is not a list of steps")
        for i, step in enumerate(steps):
            self.step(step, f"{where}.{i}")

    def step(self, step: Any, where: str) -> None:
        verb = self.verb(step, where)
        self.counts["step"] += 1
        if self.counts["step"] > STEPS:
            raise UserError(f"{where}: is step {STEPS + 1} of one run; repeat less")
        name = step.get("as")
        if name is not None and (not isinstance(name, str) or not NAME.fullmatch(name) or verb in ("repeat", "rewind")):
            raise UserError(f"{where}.as: names the state that one init, load, train, prune or transfer step leaves")
        if name in (*PLACES, "fresh"):
            raise UserError(f'{where}.as: "{name}" already means something; choose another name')
        self.verbs[verb](step[verb], {word: value for word, value in step.items() if word not in (verb, "as")}, f"{where}.{verb}")
        if name is not None:
            self.names[name] = self.latest
            self.run.states[-1] = self.run.states[-1]._replace(step=name)

    def verb(self, step: Any, where: str) -> str:
        if not isinstance(step, dict) or not step:
            raise UserError(f'{where}: {step!r} is not a step such as {{ train = "fit" }}')
        found: list[str] = [word for word in step if word in self.verbs]
        if not found:
            near = next((word for word in step if difflib.get_close_matches(word, self.verbs)), next(iter(step)))
            raise unknown("step", near, self.verbs, where)
        if len(found) > 1:
            raise UserError(f"{where}: is {' and '.join(found)} at once; write two steps")
        if found[0] not in ("init", "load", "repeat") and not self.run.moves:
            raise UserError(f"{where}: begin with init or load")
        return found[0]

    def init(self, ref: Any, extra: dict[str, Any], where: str) -> None:
        self.net = self.resolver("architecture", ref, where, extra)
        self.begin("init", self.fresh())

    def load(self, path: Any, extra: dict[str, Any], where: str) -> None:
        beside = where.removesuffix(".load")
        _only(extra, ("net", "strict", "rename", "masks"), beside)
        self.net = self.resolver("architecture", extra.get("net", "net"), f"{beside}.net")
        path, extra = self.resolver.substitute(path, where), self.resolver.substitute(extra, beside)
        name = repr((path, extra))
        if name not in self.terms.files:  # hashing a checkpoint takes seconds, and every cell asks
            self.terms.files[name] = load_part(path, extra, where, Path(self.terms.suite.path).parent)
        part, files = self.terms.files[name]
        self.begin("load", self.move("load", part, (), {}, files))

    def transfer(self, ref: Any, extra: dict[str, Any], where: str) -> None:
        _only(extra, (), where.removesuffix(".transfer"))
        self.data = self.dataset(ref, where)
        self.begin("transfer", self.move("transfer", {}, self.seed("init"), self.inputs()))

    def begin(self, verb: str, number: int) -> None:
        self.origin = number
        self.arrive(verb, number)

    def train(self, ref: Any, extra: dict[str, Any], where: str) -> None:
        part = self.resolver("trainer", ref, where, extra)
        self.arrive("train", self.move("train", part, self.seed("train"), self.inputs()))

    def prune(self, ref: Any, extra: dict[str, Any], where: str) -> None:
        part = self.resolver("pruner", ref, where, extra, turn=self.counts["prune"])
        self.arrive("prune", self.move("prune", part, self.seed("prune"), self.inputs()))

    def rewind(self, target: Any, extra: dict[str, Any], where: str) -> None:
        _only(extra, (), where.removesuffix(".rewind"))
        target = self.resolver.substitute(target, where)
        name, slash, snapshot = str(target).partition("/")
        known = {"init": self.origin, "last": self.latest, **self.names}
        if target == "fresh":
            self.weights = self.fresh(), ""
            return
        if name not in known or (slash and not snapshot):
            raise unknown("state to rewind to", target, ["fresh", *known], where)
        if snapshot:
            self.check_snapshot(name, snapshot, where)
        move = self.run.moves[known[name]]
        if (move.net, move.data) != (self.net, self.data):
            raise UserError(f'{where}: "{target}" is a state of another architecture or of other data')
        self.weights = known[name], snapshot

    def check_snapshot(self, name: str, snapshot: str, where: str) -> None:
        move = self.run.moves[self.names[name]] if name in self.names else None
        if move is None or move.verb not in ("train", "prune"):
            raise UserError(f'{where}: "{name}" has no snapshots; give a train step that keeps some a name with `as`')
        known = move.part["knobs"].get("snapshots")
        if known is not None and snapshot not in known:
            raise unknown("snapshot", snapshot, known, where)

    def repeat(self, times: Any, extra: dict[str, Any], where: str) -> None:
        times = self.resolver.substitute(times, where)
        if type(times) is not int or times < 0:
            raise UserError(f"{where}: {times!r} is not a number of rounds")
        beside = where.removesuffix(".repeat")
        _only(extra, ("steps",), beside)
        for _ in range(times):
            self.steps(extra.get("steps"), f"{beside}.steps")

    def fresh(self) -> int:
        return self.move("init", self.net, self.seed("init"), {})

    def dataset(self, ref: Any, where: str) -> dict[str, Any]:
        part = self.resolver("dataset", ref, where)
        name = repr(part)
        if name not in self.terms.datasets:
            self.terms.datasets[name] = {**part, "digest": self.terms.digests(part, where)}
        return self.terms.datasets[name]

    def seed(self, verb: str) -> tuple[str, int]:
        self.counts[verb] += 1
        return verb, self.counts[verb]

    def inputs(self) -> dict[str, Ref]:
        return {"weights": self.weights, "masks": (self.latest, "")}

    def move(
        self, verb: str, part: dict[str, Any], seed: tuple[Any, ...], inputs: dict[str, Ref], files: dict[str, str] | None = None
    ) -> int:
        self.run.moves.append(Move(verb, part, self.data, self.net, seed, inputs, files or {}))
        return len(self.run.moves) - 1

    def arrive(self, verb: str, number: int) -> None:
        self.latest, self.weights = number, (number, "")
        self.run.states.append(State(verb, number, self.counts["train"], self.counts["prune"], {}, {}))


def _only(extra: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for word in extra:
        if word not in known:
            raise unknown("entry", word, known, f"{where}.{word}")
