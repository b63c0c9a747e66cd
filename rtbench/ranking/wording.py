"""Names and numbers of a board as people read them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from rtbench.parts.flags import INCOMPLETE
from rtbench.ranking.rows import Measured
from rtbench.ranking.worst import WORST

NONE = "–"
"""What a cell says where there is nothing to say."""


def is_worst(name: str) -> bool:
    return name.startswith(f"{WORST}.")


def label(name: str) -> str:
    """A number's name as people read it: "worst.linf.1/10" is "worst linf 0.1"."""
    if not is_worst(name):
        return name
    _, norm, eps, *split = name.split(".")
    return " ".join([WORST, norm, radius(eps), *split])


def words(value: Any) -> str:
    """An axis value in a cell: a part written as a table by its name and knobs."""
    if isinstance(value, dict):
        rest = [f"{name}={words(item)}" for name, item in value.items() if name != "use"]
        return " ".join([str(value["use"])] * ("use" in value) + rest)
    if isinstance(value, list):
        return " ".join(words(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def radius(eps: str) -> str:
    """eps as the field writes it: 3/10 is 0.3, 8/255 stays, 4/85 is 12/255."""
    exact = Fraction(eps)
    decimal = repr(float(exact))
    levels = exact * 255
    return decimal.removesuffix(".0") if Fraction(decimal) == exact else f"{levels}/255" if levels.denominator == 1 and levels < 64 else eps


def number(measured: Measured, share: bool) -> str:
    """Mean ± sd over the trials; shares in percent with one decimal, other numbers with three digits, and no sd where it is 0."""
    if measured.mean is None:
        return INCOMPLETE if measured.missing else NONE
    if share:
        return percent(measured.mean) + (f" ± {percent(measured.sd)}" if measured.sd is not None else "")
    return compact(measured.mean) + (f" ± {compact(measured.sd, 2)}" if measured.sd else "")


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def compact(value: float, digits: int = 3) -> str:
    """A few digits and a unit: 266200 is 266k, 0.016777 is 0.0168."""
    rounded = float(f"{value:.{digits}g}")
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(rounded) >= size:
            return f"{rounded / size:.3g}{unit}"
    return f"{rounded:.3g}"
