"""A run before its trial is known: the moves that become stages, the states they leave, and what all runs of a suite share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rtbench.planning.resolve import Resolver
from rtbench.planning.suite import Suite

Digests = Callable[[dict[str, Any], str], str]
"""Content digest of a resolved dataset part; the second argument is its dotted path."""
Ref = tuple[int, str]
"""The number of a move, and the snapshot of it that is meant; "" is its result."""


class Source(NamedTuple):
    """A state of another run that a probe borrows from. cell: "recipe" or axis -> value; `place` is its dotted path."""

    name: str
    cell: dict[str, Any]
    at: str | int
    place: str


class Probing(NamedTuple):
    """One probe of a suite: where it is measured, and what is left of its table for the resolver.

    sources: whom it borrows from, "all" for every run, "origin" for the run's own initialisation, None where the suite does not say.
    """

    name: str
    at: list[str | int]
    where: dict[str, Any]
    part: dict[str, Any]
    sources: list[Source] | Literal["all", "origin"] | None


class Move(NamedTuple):
    """A stage but for its trial. seed: what is hashed with the trial, empty where nothing is random. inputs: by role."""

    verb: str
    part: dict[str, Any]
    data: dict[str, Any]
    net: dict[str, Any]
    seed: tuple[Any, ...]
    inputs: dict[str, Ref]
    files: dict[str, str]


class State(NamedTuple):
    """What a step left behind: its move, its name or the number of trainings and prunings so far, and the moves that measure it.

    borrowing: resolved parts of the probes that also need other runs, with what the suite says of them.
    """

    verb: str
    move: int
    step: int | str
    round: int
    probes: dict[str, int]
    borrowing: dict[str, tuple[Probing, dict[str, Any]]]


@dataclass
class Run:
    """A recipe in a cell: the values of the axes that its steps, their parts and its probes mention; `own` without its probes'."""

    recipe: str
    cell: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    states: list[State] = field(default_factory=list)


@dataclass
class Terms:
    """What all runs of one suite share. datasets, files: resolved data sets and checkpoints, so that each is hashed once."""

    suite: Suite
    resolver: Resolver
    digests: Digests
    probings: list[Probing]
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, tuple[dict[str, Any], dict[str, str]]] = field(default_factory=dict)
