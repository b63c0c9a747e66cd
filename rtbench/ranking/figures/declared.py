"""The suite's [[figures]]: what each entry asks for, checked against the suite's axes and probes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.planning.places import check_where, listed
from rtbench.planning.suite import Suite
from rtbench.ranking.worst import WORST

KINDS = ("curve", "bar", "scatter", "density", "matrix")
BANDS = ("sd", "interval", "none")
LOGS = {"curve": ("x", "y", "xy"), "scatter": ("x", "y", "xy"), "bar": ("y",), "density": ("y",)}
DENSITIES = ("sparsity", "density")
TRAINING = ("step", "epoch")
EACH = "y"
"""What `lines` or `panels` call the several numbers of `y`."""


@dataclass(frozen=True)
class Declared:
    """One entry, complete. x: an axis, "recipe", "round", "step", "epoch", or a number of a probe; "" where the kind has none.

    measured: x is a number of a probe. kept: then whether it is the share of weights kept ("density") or removed ("sparsity"), or "".
    flip: the probe measures the other one of these. place: its dotted path.
    """

    name: str
    place: str
    kind: str
    x: str
    y: tuple[str, ...]
    lines: tuple[str, ...]
    panels: tuple[str, ...]
    band: str
    where: dict[str, Any]
    title: str
    log: str
    measured: bool = False
    kept: str = ""
    flip: bool = False

    @property
    def training(self) -> bool:
        """Whether it follows a training stage, whose records `y` names."""
        return self.kind == "curve" and self.x in TRAINING

    def words(self) -> set[str]:
        """All that its states are told apart by. The step of a training is not one of these: it counts inside of a state."""
        return {"" if self.training else self.x, *self.lines, *self.panels, *self.where}


def read(suite: Suite) -> list[Declared]:
    """The suite's figures; UserError with the dotted path of the first word that means nothing here."""
    found: dict[str, Declared] = {}
    for i, entry in enumerate(suite.figures):
        one = _read(suite, entry, f"figures.{i}", i)
        if one.name in found:
            raise UserError(f'{one.place}.name: "{one.name}" is the name of {found[one.name].place} already')
        found[one.name] = one
    return list(found.values())


def _read(suite: Suite, entry: dict[str, Any], place: str, number: int) -> Declared:
    kind = _one_of(entry["kind"], KINDS, "kind", f"{place}.kind")
    name = entry.get("name", f"{kind}-{number + 1}")
    if not re.fullmatch(r"\w[\w-]*", name, re.ASCII):
        raise UserError(f'{place}.name: "{name}" names files, so it is made of letters, digits, "-" and "_"')
    band = _one_of(entry.get("band", "none" if kind == "matrix" else "sd"), BANDS, "choice", f"{place}.band")
    if kind == "matrix" and band != "none":
        raise UserError(f"{place}.band: a matrix shows numbers, not bands")
    log = entry.get("log", "")
    if log and log not in LOGS.get(kind, ()):
        raise unknown(f"logarithmic direction of a {kind}", log, LOGS.get(kind, ()), f"{place}.log")
    x, measured, kept, flip = _x(suite, kind, entry.get("x"), f"{place}.x")
    y = tuple(listed(entry["y"]))
    training = kind == "curve" and x in TRAINING
    _check_y(suite, y, training, place)
    groups = {word: _groups(suite, entry.get(word, []), len(y), kind, f"{place}.{word}") for word in ("lines", "panels")}
    _check_once([x, *groups["lines"], *groups["panels"]], place)
    where = entry.get("where", {})
    check_where(suite, {word: values for word, values in where.items() if word not in ("round", "step")}, f"{place}.where")
    for value in listed(where.get("round", [])):
        if type(value) is not int or value < 0:
            raise UserError(f"{place}.where.round: {value!r} is not a number of rounds")
    return Declared(name, place, kind, x, y, groups["lines"], groups["panels"], band, where, entry.get("title", ""), log,
                    measured, kept, flip)  # fmt: skip


def _one_of(word: str, known: tuple[str, ...], what: str, place: str) -> str:
    if word not in known:
        raise unknown(what, word, known, place)
    return word


def _x(suite: Suite, kind: str, x: str | None, place: str) -> tuple[str, bool, str, bool]:
    """x, whether a probe measures it, "density" or "sparsity" if that is what it is, and whether the probe measures the other."""
    if kind in ("density", "matrix"):
        if x is not None:
            raise UserError(f"{place}: a {kind} has no x; it shows what `y` names")
        return "", False, "", False
    if x is None:
        raise UserError(f"{place}: is missing; a {kind} needs what is shown from left to right")
    if kind == "bar":
        return _one_of(x, ("recipe", "round", *suite.axes), "axis", place), False, "", False
    if kind == "curve" and x in ("round", *TRAINING):
        return x, False, "", False
    if kind == "curve" and x in suite.axes:
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in suite.axes[x]):
            raise UserError(f'{place}: the values of axis "{x}" are no numbers; a bar has categories')
        return x, False, "", False
    head = x.split(".")[0]
    uses = {name: _sense(name, table["use"]) for name, table in suite.probes.items()}
    if head not in suite.probes and x in DENSITIES:
        probe = next((name for name, use in uses.items() if use), None)
        if probe is None:
            raise UserError(f'{place}: no probe measures {x}; add one, as in [probes] {x} = {{ use = "{x}" }}')
        return probe, True, x, uses[probe] != x
    if head not in suite.probes and head != WORST:
        words = [*suite.axes, "round", *TRAINING] if kind == "curve" else []
        raise unknown("probe or axis" if kind == "curve" else "probe", x, [*suite.probes, *words, *DENSITIES], place)
    return x, True, uses.get(head, ""), False


def _sense(name: str, use: str) -> str:
    """Whether a probe measures "density" or "sparsity", by what it uses or is called; "" if neither."""
    return use if use in DENSITIES else name if name in DENSITIES else ""


def _check_y(suite: Suite, y: tuple[str, ...], training: bool, place: str) -> None:
    if not y:
        raise UserError(f"{place}.y: is empty, so there is nothing to show")
    for i, name in enumerate(y):
        where = f"{place}.y.{i}" if len(y) > 1 else f"{place}.y"
        if name in y[:i]:
            raise UserError(f'{where}: "{name}" is there twice')
        if not training and name.split(".")[0] not in (*suite.probes, WORST):
            raise unknown("probe", name, [*suite.probes, WORST], where)


def _groups(suite: Suite, words: list[str], numbers: int, kind: str, place: str) -> tuple[str, ...]:
    known = ["recipe", "round", "step", *suite.axes, *([EACH] if numbers > 1 and kind in ("curve", "bar") else [])]
    for i, word in enumerate(words):
        if word not in known:
            raise unknown("axis", word, known, f"{place}.{i}")
    return tuple(words)


def _check_once(words: list[str], place: str) -> None:
    for i, word in enumerate(words):
        if word and word in words[:i]:
            raise UserError(f'{place}: "{word}" is used twice among x, lines and panels')
