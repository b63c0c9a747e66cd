"""One figure in the making: its declaration, its states, and what its axes are called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rtbench.planning.plan import Plan
from rtbench.ranking.figures.declared import DENSITIES, Declared
from rtbench.ranking.figures.points import measured
from rtbench.ranking.figures.shapes import Axis
from rtbench.ranking.figures.states import Group, State, value, value_text
from rtbench.ranking.wording import label, radius, words
from rtbench.ranking.worst import WORST
from rtbench.storage.index import Index

MORE = ("accuracy", "curve", "transfer", "pool", "sparsity")
LESS = ("density", "cost", "macs", "parameters", "loss")
"""Probes of which more, or less, is better; of others no front is drawn."""
NAMES = {"step": "training step", "epoch": "training epoch", "round": "round of pruning"}


@dataclass
class Sheet:
    """shares: the numbers that are shares of samples. asked, got: how many numbers are planned, and how many there are."""

    plan: Plan
    index: Index
    one: Declared
    shares: set[str]
    groups: list[Group]
    asked: int = 0
    got: int = 0

    def count(self, asked: int, got: int) -> None:
        self.asked, self.got = self.asked + asked, self.got + got

    def states(self) -> list[State]:
        return [state for group in self.groups for state in group.states]

    @cached_property
    def uses(self) -> dict[str, str]:
        """What each probe of the suite uses."""
        return {name: table["use"] for name, table in self.plan.suite.probes.items()}

    @cached_property
    def ticks(self) -> list[str]:
        """The categories from left to right: values of an axis that are there, or the sources of a matrix that have a number."""
        one, states = self.one, self.states()
        if one.kind == "matrix":
            sources: dict[str, None] = {}
            for head, dot, part in (y.partition(".") for y in one.y):
                planned = (p for state in states for p in state.probes if p.startswith(f"{head}.") and measured(state, f"{p}{dot}{part}"))
                sources.update(dict.fromkeys(probe.removeprefix(f"{head}.") for probe in planned))
            return list(sources)
        if one.kind != "bar":
            return []
        values: list[Any] = {"recipe": list(self.plan.suite.recipes), **self.plan.suite.axes}.get(one.x, [])
        there = {value_text(state, one.x): value(state, one.x) for state in states if value(state, one.x) is not None}
        return [text for text in map(words, values or sorted(there.values())) if text in there]

    @cached_property
    def edges(self) -> dict[str, list[float]]:
        """The edges of histograms, by the stage that made one."""
        keys = [key for state in self.states() if state.row for stages in state.row.keys.values() for key in stages]
        return {key: row.about["edges"] for key, row in self.index.rows(keys).items() if "edges" in row.about}

    def x(self) -> Axis:
        one, log = self.one, "x" in self.one.log
        if one.kept:
            return Axis(f"weights {'kept' if one.kept == 'density' else 'removed'}", "%", log=log, falling=one.kept == "density")
        if one.kind == "matrix":
            return Axis("source", ticks=tuple(shortened(self.ticks, [group.label for group in self.groups])))
        if one.kind == "density":
            return Axis("weight")
        axis = self.number(one.x) if one.measured else Axis(NAMES.get(one.x, one.x), ticks=tuple(self.ticks))
        return replace(axis, log=log)

    def y(self, names: list[str]) -> Axis:
        """The axis of one or several numbers; what it says beside their names is true of all of them."""
        log = "y" in self.one.log
        if self.one.kind == "density":
            return Axis("density", log=log)
        if self.one.kind == "matrix":
            name, dot, part = names[0].partition(".")
            return replace(self.number(f"{name}.{self.ticks[0]}{dot}{part}" if self.ticks else name), name=label(names[0]))
        axes = [self.number(name) for name in names]
        units, balls = {axis.unit for axis in axes}, {(axis.norm, axis.eps) for axis in axes}
        norm, eps = balls.pop() if len(balls) == 1 else ("", "")
        return Axis(", ".join(axis.name for axis in axes), units.pop() if len(units) == 1 else "", norm, eps, log=log)

    def number(self, name: str) -> Axis:
        """An axis for one number, with the threat that every state measured it under."""
        rows = [state.row for state in self.states() if state.row and name in state.row.probes]
        balls = {(row.probes[name].norm, row.probes[name].eps) for row in rows}
        norm, eps = next(iter(balls)) if len(balls) == 1 and not name.startswith(f"{WORST}.") else (None, None)
        return Axis(label(name), "%" if self.is_share(name) else "", norm=norm or "", eps=radius(eps) if norm and eps else "")

    def is_share(self, name: str) -> bool:
        """Whether a number is a share of samples or weights, to be shown in percent."""
        head = name.split(".")[0]
        if self.one.training:
            knobs = [self.plan.stages[key].part["knobs"].get("probes") for state in self.states() for key in state.keys]
            uses = {probes[head]["use"] for probes in knobs if isinstance(probes, dict) and head in probes}
            return uses == {"accuracy"} and name == head
        return name in self.shares or self.uses.get(head) in DENSITIES

    def sign(self, name: str) -> int:
        """1 where more of a number is better, -1 where less is, 0 where nobody knows."""
        if name == self.one.x and self.one.kept:
            return 1 if self.one.kept == "sparsity" else -1
        use = self.uses.get(name.split(".")[0], "")
        return 1 if use in MORE or name in self.shares else -1 if use in LESS else 0


def shortened(sources: list[str], rows: list[str]) -> list[str]:
    """The sources of a matrix without the words that all begin with, where rows are called without them: "ticket-0.5" is row 0.5."""
    first = sources[0] if sources else ""
    starts = [first[: place + 1] for place, letter in enumerate(first) if letter == "-"]
    shared = [start for start in starts if all(name.startswith(start) for name in sources)]
    start = next((start for start in shared if any(name.removeprefix(start) in rows for name in sources)), "")
    return [name.removeprefix(start) for name in sources]
