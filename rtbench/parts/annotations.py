"""What a knob's annotation can say: its type, an interval, a group of which one is given, or that it is another part."""

from __future__ import annotations

import math
import re
import types
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, Union, get_args, get_origin

EXACT = re.compile(r"[+-]?(\d{1,2000}(/\d{1,2000})?|(\d{1,2000}\.?\d{0,2000}|\.\d{1,2000})(e[+-]?\d{1,3})?)", re.ASCII | re.IGNORECASE)
"""Numbers as text. The lengths are bounded because exact arithmetic on "1e999999999" would never end."""


class Range:
    """An interval in mathematical notation, `Range("(0, 1]")`, `Range("[0, inf)")`; NaN and infinities are never inside."""

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"([\[(])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([\])])", text.strip())
        if not match:
            raise ValueError(f'"{text}" is not an interval such as "[0, 1)"')
        left, low, high, right = match.groups()
        self.text, self.low, self.high = text, float(low), float(high)
        self.closed_low, self.closed_high = left == "[", right == "]"

    def __contains__(self, value: float | Fraction) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        above = value >= self.low if self.closed_low else value > self.low
        return above and (value <= self.high if self.closed_high else value < self.high)

    def __repr__(self) -> str:
        return f'Range("{self.text}")'


@dataclass(frozen=True)
class OneOf:
    """Exactly one knob of the group is given, all others are left at None."""

    group: str


@dataclass(frozen=True)
class Nested:
    """The knob is another part of this kind: a name, or a table with `use`."""

    kind: str


Attack = Annotated[Any, Nested("attack")]
Objective = Annotated[Any, Nested("objective")]
Trainer = Annotated[Any, Nested("trainer")]
Probe = Annotated[Any, Nested("probe")]


def readable(annotation: Any) -> bool:
    """Whether `check` knows this type of knob."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return any(isinstance(c, Nested) for c in annotation.__metadata__) or readable(args[0])
    if origin is dict:
        return args[0] is str and readable(args[1])
    if origin in (list, tuple, Union, types.UnionType):
        return all(readable(arg) for arg in args if arg is not Ellipsis)
    return origin is Literal or annotation in (Any, int, float, str, bool, Fraction, type(None))


def takes_list(annotation: Any) -> bool:
    """Whether a value of this knob may itself be a list."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return not any(isinstance(c, Nested) for c in annotation.__metadata__) and takes_list(args[0])
    if origin in (Union, types.UnionType):
        return any(takes_list(arg) for arg in args)
    return origin in (list, tuple) or annotation is Any


def fits(annotation: Any, value: Any) -> bool:
    """Whether a checked value can have come from this member of a union."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        nested = any(isinstance(c, Nested) for c in annotation.__metadata__)
        return isinstance(value, dict) and "use" in value if nested else fits(args[0], value)
    if origin in (Union, types.UnionType):
        return any(fits(arg, value) for arg in args)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (list, tuple):
        return isinstance(value, list) and all(fits(args[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(args[1], item) for item in value.values())
    return isinstance(value, str) and bool(EXACT.fullmatch(value)) if annotation is Fraction else annotation in (Any, type(value))


def leaves(annotation: Any) -> tuple[Any, ...]:
    """The plain types that an annotation is made of."""
    args = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return leaves(args[0])
    return sum((leaves(arg) for arg in args), ()) if args else (annotation,)
