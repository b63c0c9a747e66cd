"""Knobs: a part's keyword-only parameters, their types and constraints, checked before anything runs.

A knob's annotation is its whole declaration: `Annotated[float, Range("(0, 1]")]`, `Literal["linf", "l2"]`, `int | None`,
`list[int]`, `dict[str, Probe]`, or a nested part (`Attack`, `Objective`, `Trainer`, `Probe`). Its default must pass its own
constraint. A line `name: text` in the part's docstring is the knob's help.
"""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from rtbench.errors import UserError, unknown
from rtbench.parts.annotations import EXACT, Attack, Nested, Objective, OneOf, Probe, Range, Trainer, fits, leaves

__all__ = [
    "REQUIRED", "Attack", "Knob", "Nest", "Nested", "Objective", "OneOf", "Probe", "Range", "Trainer", "check", "check_all", "decode",
    "fraction", "knobs_of",
]  # fmt: skip

Nest = Callable[[str, Any, str], Any]
"""Resolves a nested part: (kind, what the user wrote, dotted path) -> resolved part."""

REQUIRED: Any = inspect.Parameter.empty


class Knob(NamedTuple):
    name: str
    annotation: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def group(self) -> str | None:
        """The `OneOf` group this knob belongs to."""
        return next((c.group for c in getattr(self.annotation, "__metadata__", ()) if isinstance(c, OneOf)), None)


@lru_cache(maxsize=4096)
def knobs_of(function: Callable[..., Any]) -> dict[str, Knob]:
    """The keyword-only parameters of a part, by name, in the order written."""
    hints = get_type_hints(function, include_extras=True)
    lines = re.findall(r"^\s*(\w+): (.+)$", inspect.getdoc(function) or "", re.MULTILINE)
    helps = {name: text.strip() for name, text in reversed(lines)}
    return {
        name: Knob(name, hints.get(name, Any), parameter.default, helps.get(name, ""))
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def check(annotation: Any, value: Any, where: str, nest: Nest) -> Any:
    """The value in canonical JSON form, or UserError naming `where`.

    Fractions stay exact ("8/255"); floats accept "8/255" and become the nearest float; nested parts are resolved by `nest`.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _check_annotated(args[0], annotation.__metadata__, value, where, nest)
    if origin in (Union, types.UnionType):
        return _check_union(args, value, where, nest)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise unknown("choice", value, map(str, args), where)
        return value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: {value!r} is not a list")
        if origin is tuple and args[-1] is not Ellipsis:
            if len(value) != len(args):
                raise UserError(f"{where}: {list(value)!r} is not a list of {len(args)}")
            return [check(arg, item, f"{where}.{i}", nest) for i, (arg, item) in enumerate(zip(args, value, strict=True))]
        return [check(args[0], item, f"{where}.{i}", nest) for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: {value!r} is not a table")
        return {str(k): check(args[1], item, f"{where}.{k}", nest) for k, item in value.items()}
    return _check_scalar(annotation, value, where)


def _check_annotated(base: Any, constraints: tuple[Any, ...], value: Any, where: str, nest: Nest) -> Any:
    for constraint in constraints:
        if isinstance(constraint, Nested):
            return nest(constraint.kind, value, where)
    result = check(base, value, where, nest)
    for constraint in constraints:
        if isinstance(constraint, Range):
            for place, number in _numbers(result, where, Fraction in leaves(base)):
                if number not in constraint:
                    raise UserError(f"{place}: {number} is outside {constraint.text}")
    return result


def _numbers(value: Any, where: str, exact: bool) -> Iterator[tuple[str, int | float | Fraction]]:
    """Every number in a checked value, with its dotted path; exact: texts such as "8/255" are numbers too."""
    if isinstance(value, list | dict):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(item, f"{where}.{name}", exact)
    elif exact and isinstance(value, str) and EXACT.fullmatch(value):
        yield where, Fraction(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, value


def _check_union(args: tuple[Any, ...], value: Any, where: str, nest: Nest) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for arg in args:
        if arg is not type(None):
            try:
                return check(arg, value, where, nest)
            except UserError as error:
                errors.append(error)
    raise errors[0]


def _check_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if kind is Fraction:
        return str(fraction(value, where))
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _finite(fraction(value, where) if isinstance(value, str) else value, where)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    raise UserError(f"{where}: {value!r} is not {names.get(kind, f'of type {kind}')}")


def _finite(value: int | float | Fraction, where: str) -> float:
    try:
        number = float(value) + 0.0  # -0.0 becomes 0.0: one value, one key
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{where}: {value} is not a finite number")
    return number


def fraction(value: Any, where: str) -> Fraction:
    """An exact number from 8, 0.3, "8/255" or "0.3" (0.3 is read as 3/10); UserError naming `where` otherwise."""
    try:
        text = re.sub(r"\s*/\s*", "/", str(value).strip())
        if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction) or not EXACT.fullmatch(text):
            raise ValueError
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UserError(f'{where}: {value!r} is not a number or a fraction such as "8/255"') from None


def decode(annotation: Any, value: Any, nest: Callable[[str, Any], Any]) -> Any:
    """What the part is called with for a checked value: exact fractions become `Fraction`, nested parts whatever `nest` makes."""
    origin, args = get_origin(annotation), get_args(annotation)
    if value is None or origin is Literal:
        return value
    if origin in (Union, types.UnionType):
        return decode(next((arg for arg in args if fits(arg, value)), Any), value, nest)
    if origin is Annotated:
        kind = next((c.kind for c in annotation.__metadata__ if isinstance(c, Nested)), None)
        return nest(kind, value) if kind else decode(args[0], value, nest)
    if origin is tuple:
        each = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(decode(arg, item, nest) for arg, item in zip(each, value, strict=True))
    if origin is list:
        return [decode(args[0], item, nest) for item in value]
    if origin is dict:
        return {name: decode(args[1], item, nest) for name, item in value.items()}
    return Fraction(value) if annotation is Fraction else value


def check_all(
    knobs: dict[str, Knob], given: dict[str, Any], where: str, nest: Nest, places: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Every knob's canonical value, defaults included; UserError on unknown, missing, impossible or clashing knobs.

    places: the dotted paths of knobs that are not written at `where`.
    """
    paths = {name: f"{where}.{name}" for name in [*knobs, *given]} | dict(places or {})
    for name in given:
        if name not in knobs:
            raise unknown("knob", name, knobs, paths[name])
    values = {}
    for name, knob in knobs.items():
        if name not in given and knob.required:
            raise UserError(f"{paths[name]}: is missing; this part needs it{': ' + knob.help if knob.help else ''}")
        value = given.get(name, knob.default)
        values[name] = None if value is None and knob.default is None else check(knob.annotation, value, paths[name], nest)
    for group in dict.fromkeys(knob.group for knob in knobs.values() if knob.group):
        members = [name for name, knob in knobs.items() if knob.group == group]
        chosen = [name for name in members if values[name] is not None]
        if len(chosen) != 1:
            raise UserError(f"{where}: give exactly one of {', '.join(members)}, not {' and '.join(chosen) or 'none'}")
    return values
