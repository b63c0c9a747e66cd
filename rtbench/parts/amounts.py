"""How many weights to keep: one vocabulary of amounts, and layers named by shell patterns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from fractions import Fraction

from rtbench.errors import UserError, unknown

Share = float | Fraction | None


def exact(share: float | Fraction) -> Fraction:
    """The fraction a share stands for: 0.15 is 3/20 although no float is, and 0.3333333333333333 is 1/3."""
    return Fraction(share).limit_denominator(10**8) if isinstance(share, float) else Fraction(share)


def wanted(size: int, alive: int, keep: Share = None, drop: Share = None, count: int | None = None, layer: str = "") -> int:
    """How many weights to keep where `alive` of `size` are left, rounded half up; `layer` is named in errors.

    Exactly one of keep (share of size), drop (share of alive) and count. Raises UserError if that is more than alive, or no share.
    """
    given = {name: value for name, value in (("keep", keep), ("drop", drop), ("count", count)) if value is not None}
    if len(given) != 1:
        raise UserError(f"give exactly one of keep, drop and count, not {' and '.join(given) or 'none'}")
    for name, share in (("keep", keep), ("drop", drop)):
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"{name} = {share} is not a share between 0 and 1")
    if keep is not None:
        number = math.floor(exact(keep) * size + Fraction(1, 2))
    elif drop is not None:
        number = math.floor((1 - exact(drop)) * alive + Fraction(1, 2))
    else:
        assert count is not None
        number = count
    if not 0 <= number <= alive:
        raise UserError(f"cannot keep {number} weights{layer and ' of ' + layer}: {alive} of {size} are left and none is revived")
    return number


def matching(names: Iterable[str], patterns: Iterable[str], where: str) -> list[str]:
    """The names that any of the shell patterns matches, in their order; UserError on a pattern that matches none."""
    names, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unknown("layer", pattern, names, where)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def per_layer(names: Iterable[str], rates: Mapping[str, float], where: str = "rates") -> dict[str, float]:
    """The rate of every layer that has one, from layer names and shell patterns; a name overrules patterns.

    Raises UserError on a pattern that matches no layer and on a layer for which two patterns say different rates.
    """
    names = list(names)
    found: dict[str, float] = {}
    for pattern in sorted(rates, key=lambda pattern: pattern in names):
        for name in matching(names, [pattern], where):
            if name != pattern and found.get(name, rates[pattern]) != rates[pattern]:
                raise UserError(f"{where}: {name} is given {found[name]} and {rates[pattern]} by two patterns; name the layer itself")
            found[name] = rates[pattern]
    return found
