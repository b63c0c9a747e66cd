"""Small valid knobs for a part that cannot run on its defaults, or would take long on them; and the part bound to them."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import torch

from rtbench.engine.bind import Binder
from rtbench.errors import UserError
from rtbench.parts.annotations import leaves
from rtbench.parts.kinds import knobs
from rtbench.parts.knobs import Knob, Nested, Range
from rtbench.planning.resolve import Resolver
from rtbench.plugins import Catalogue, Part
from rtbench.testing.result import Skip

T = TypeVar("T")

NESTED: dict[str, Any] = {
    "attack": {"use": "pgd", "norm": "linf", "eps": "1/10", "steps": 3},
    "objective": "natural",
    "trainer": {"use": "sgd", "steps": 6, "batch": 32},
    "probe": "density",
}
"""A nested part of each kind that is cheap and does something."""

KNOWN = {"norm": "linf", "eps": "1/10"}
LENGTHS = {"steps": 5, "epochs": 2, "restarts": 2, "iterations": 20, "queries": 50, "samples": 48, "batch": 32}
"""Knobs that say how long a part runs, by their usual names: a larger default is replaced by this."""


@dataclass
class Subject:
    """A part under test. wanted: knobs that its author chose; those it still lacks are chosen here."""

    part: Part
    catalogue: Catalogue
    wanted: dict[str, Any] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returns or raises, made once: most checks look at the same few runs."""
        if name not in self.memo:
            try:
                self.memo[name] = make(), None
            except Exception as error:
                self.memo[name] = None, error
        value, failure = self.memo[name]
        if failure is not None:
            raise failure
        found: T = value
        return found

    def resolve(self, **changes: Any) -> dict[str, Any]:
        """The resolved part with its sample knobs, some of them changed, or left out where None; Skip if there are none."""
        given = {**self.once("given", lambda: choose(self.part, self.catalogue, self.wanted)), **changes}
        return resolved(self.part, self.catalogue, {name: value for name, value in given.items() if value is not None})

    def binder(self, seed: int = 0, **about: Any) -> Binder:
        """Binds parts as a stage of this seed would."""
        about.setdefault("rng", torch.Generator().manual_seed(seed))
        return Binder(self.catalogue, seed, **about)


def resolved(part: Part, catalogue: Catalogue, given: dict[str, Any]) -> dict[str, Any]:
    return Resolver({}, catalogue)(part.kind, {"use": part.name, **given}, part.name)


def choose(part: Part, catalogue: Catalogue, wanted: dict[str, Any]) -> dict[str, Any]:
    """Knobs under which the part resolves: the wanted ones, and short and representative others; Skip where there are none."""
    reason = ""
    for given in candidates(knobs(part.kind, part.function), wanted):
        try:
            resolved(part, catalogue, given)
        except UserError as error:
            reason = reason or str(error)
        else:
            return given
    raise Skip(reason)


def candidates(declared: dict[str, Knob], wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The wanted and the required knobs with, then without, what makes the part short and gives it real nested parts."""
    needed = {name: guess(name, knob.annotation) for name, knob in declared.items() if knob.required and name not in wanted} | wanted
    groups = {knob.group for knob in declared.values()} - {None}
    for group in sorted(str(group) for group in groups):
        members = [knob for knob in declared.values() if knob.group == group]
        if all(knob.default is None and knob.name not in wanted for knob in members):
            needed[members[0].name] = guess(members[0].name, members[0].annotation)
    short = {
        name: LENGTHS[name]
        for name, knob in declared.items()
        if name in LENGTHS and name not in needed and type(knob.default) is int and knob.default > LENGTHS[name]
    }
    inner = {name: guess(name, knob.annotation) for name, knob in declared.items() if name not in needed and _nests(knob)}
    for extra in ({**short, **inner}, inner, short, {}):
        yield {**extra, **needed}


def _nests(knob: Knob) -> bool:
    """Whether the knob is an attack or a trainer: their usual defaults do nothing, or cannot stand alone."""
    return any(isinstance(c, Nested) and c.kind in ("attack", "trainer") for c in getattr(knob.annotation, "__metadata__", ()))


def guess(name: str, annotation: Any) -> Any:
    """A small valid value of this type; Skip where there is no telling, such as a file name."""
    origin, args = get_origin(annotation), get_args(annotation)
    if name in KNOWN:
        return KNOWN[name]
    if origin is Annotated:
        for constraint in annotation.__metadata__:
            if isinstance(constraint, Nested):
                return NESTED[constraint.kind]
            if isinstance(constraint, Range):
                return _shaped(args[0], _middle(constraint, int in leaves(args[0])))
        return guess(name, args[0])
    if origin in (Union, types.UnionType):
        return guess(name, next(arg for arg in args if arg is not type(None)))
    if origin is Literal:
        return args[0]
    if origin in (list, tuple) and args:
        return [guess(name, arg) for arg in args if arg is not Ellipsis]
    if origin is dict and args:
        return {"sample": guess(name, args[1])}
    if annotation in (bool, int, float, Fraction):
        return False if annotation is bool else 1
    raise Skip(f'the knob "{name}" has no default and no value of it can be guessed; give one: check(name, knobs={{"{name}": ...}})')


def _middle(interval: Range, whole: bool) -> Any:
    """A number inside: the middle, or one from the only finite end."""
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        middle = (interval.low + interval.high) / 2
    else:
        middle = interval.low + 1 if math.isfinite(interval.low) else interval.high - 1 if math.isfinite(interval.high) else 1.0
    return int(middle) if whole else middle


def _shaped(annotation: Any, value: Any) -> Any:
    """The value, inside as many lists and tables as the annotation asks for."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple):
        return [_shaped(arg, value) for arg in args if arg is not Ellipsis]
    return {"sample": _shaped(args[1], value)} if origin is dict else value
