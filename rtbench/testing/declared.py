"""What every part declares, whatever its kind: its name, its docstring, its knobs and their constraints. Nothing is run."""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rtbench.errors import UserError
from rtbench.parts import knobs as declarations
from rtbench.parts.kinds import knobs, validate
from rtbench.parts.knobs import Knob, Nested, Range
from rtbench.planning.resolve import Resolver
from rtbench.testing.result import Broken, need
from rtbench.testing.sample import Subject

NUMBERS = (int, float, Fraction)


def well_named(subject: Subject) -> None:
    """Its name is lower case letters, digits and single dashes."""
    need(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", subject.part.name), f'"{subject.part.name}" is not')


def documented(subject: Subject) -> None:
    """It has a docstring that begins with a sentence about what it does."""
    doc = inspect.getdoc(subject.part.function) or ""
    need(doc.split("\n\n")[0].strip(), "it has no docstring")


def known_words(subject: Subject) -> None:
    """It asks only for words that its kind is called with, and its knobs are keyword-only."""
    try:
        validate(subject.part.kind, subject.part.name, subject.part.function)
    except ValueError as error:
        raise Broken(str(error)) from None


def bounded(subject: Subject) -> None:
    """Every knob that is a number has a Range."""
    for knob in _knobs(subject):
        for kind in unbounded(knob.annotation):
            raise Broken(f'the knob "{knob.name}" is {kind}; write Annotated[..., Range("[0, inf)")] with the values that make sense')


def sound_defaults(subject: Subject) -> None:
    """Every default passes the constraint of its own knob."""
    for knob in _knobs(subject):
        if not knob.required and knob.default is not None:
            try:
                _check(subject, knob, knob.default)
            except UserError as error:
                raise Broken(f"the default of {error}") from None


def refusing(subject: Subject) -> None:
    """Every Range refuses what is outside of it before anything runs."""
    for knob in _knobs(subject):
        for bad in outsiders(knob.annotation):
            try:
                _check(subject, knob, bad)
            except UserError:
                continue
            except Exception as error:
                raise Broken(f'the knob "{knob.name}" cannot be checked for {bad!r}: {type(error).__name__}: {error}') from error
            raise Broken(f'the knob "{knob.name}" accepts {bad!r}')


CHECKS = (well_named, documented, known_words, bounded, sound_defaults, refusing)


def _knobs(subject: Subject) -> list[Knob]:
    return list(knobs(subject.part.kind, subject.part.function).values())


def _check(subject: Subject, knob: Knob, value: Any) -> None:
    """UserError unless the value passes; nested parts are resolved as a suite's would be."""

    def nest(kind: str, value: Any, where: str) -> Any:
        return Resolver({}, subject.catalogue)(kind, value, where)

    declarations.check(knob.annotation, value, knob.name, nest)


def unbounded(annotation: Any, covered: bool = False) -> Iterator[str]:
    """What is wrong with each number in the annotation that no Range bounds. A knob that takes any text is free in all."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if not any(isinstance(c, Nested) for c in annotation.__metadata__):
            yield from unbounded(args[0], covered or any(isinstance(c, Range) for c in annotation.__metadata__))
    elif origin in (Union, types.UnionType):
        for arg in args:
            yield from unbounded(arg, covered or str in args)
    elif origin in (list, tuple, dict):
        for arg in args[1:] if origin is dict else args:
            yield from unbounded(arg, covered)
    elif annotation in (list, tuple, dict):
        yield f"a {annotation.__name__} of anything: say of what"
    elif annotation is Any:
        yield "of any type: annotate it"
    elif annotation in NUMBERS and not covered:
        yield f"{annotation.__name__} without a Range"


def outsiders(annotation: Any) -> Iterator[Any]:
    """Values, in the shape the annotation wants, that its Ranges must refuse."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return
    if origin is Annotated:
        for interval in [c for c in annotation.__metadata__ if isinstance(c, Range)]:
            yield from _shaped(args[0], interval)
        yield from outsiders(args[0])
    elif origin in (Union, types.UnionType):
        for arg in args:
            yield from outsiders(arg)
    elif origin in (list, tuple):
        yield from (_repeated(args, bad) for bad in outsiders(args[0]))
    elif origin is dict:
        yield from ({"sample": bad} for bad in outsiders(args[1]))


def _repeated(args: tuple[Any, ...], bad: Any) -> list[Any]:
    """A list of one, or of as many as a tuple of fixed length has."""
    return [bad] * (1 if Ellipsis in args else len(args))


def _shaped(annotation: Any, interval: Range) -> Iterator[Any]:
    """Numbers outside the interval, inside as many lists and tables as the annotation asks for."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType, Annotated):
        for arg in args[:1] if origin is Annotated else args:
            yield from _shaped(arg, interval)
    elif origin in (list, tuple):
        yield from (_repeated(args, bad) for bad in _shaped(args[0], interval))
    elif origin is dict:
        yield from ({"sample": bad} for bad in _shaped(args[1], interval))
    elif annotation in NUMBERS:
        if math.isfinite(interval.low):
            below = math.ceil(interval.low) - 1 if annotation is int else interval.low - 1
            yield interval.low if not interval.closed_low and annotation is not int else below
        if math.isfinite(interval.high):
            above = math.floor(interval.high) + 1 if annotation is int else interval.high + 1
            yield interval.high if not interval.closed_high and annotation is not int else above
        if annotation is not int:
            yield from (math.nan, math.inf)
