"""The shape of a suite file: which tables and entries there are and of which type. What they mean is checked by the planner."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.keys import canonical

TABLES = {
    "axes": dict, "recipes": dict, "probes": dict, "parts": dict, "profiles": dict, "board": dict, "published": list, "figures": list,
    "tickets": (dict, list),
}  # fmt: skip
SCALARS = {"name": str, "trials": int, "data": (str, dict), "about": str}
BOARD = {"rows": list, "columns": list, "without": list, "rank": (str, list), "show": str, "caption": str, "label": str}
PUBLISHED = {"where": dict, "probe": str, "value": (int, float, list), "source": str, "caveat": str}
FIGURE = {"name": str, "kind": str, "x": str, "y": (str, list), "lines": list, "panels": list, "band": str, "where": dict,
          "title": str, "log": str}  # fmt: skip
TICKETS = {
    "measure": str, "where": dict, "dense": dict, "random": dict, "fresh": dict,
    "at": (str, int, list), "epochs": str, "winning": dict, "schedule": str,
}  # fmt: skip
NEEDED = 5
"""So many entries of [tickets], the first, may not be left out: there is no verdict without all controls."""
RECIPE = {"steps": list, "data": (str, dict), "where": dict}
TYPES = {dict: "a table", list: "a list", str: "a text", int: "a whole number", float: "a number"}
DEPTH = 32
"""Tables and lists in each other; a repeat in a repeat takes four."""
RESERVED = ("recipe", "trial", "step", "round")
"""What says where a number stands, besides the axes."""


def text(value: Any) -> str:
    """How a value of an axis is written in `--only`, `where` and messages: texts as they are, anything else as JSON."""
    return value if isinstance(value, str) else canonical(value)


def check_profiles(raw: dict[str, Any]) -> None:
    """UserError unless the profiles are tables of dotted keys."""
    profiles = raw.get("profiles", {})
    if not isinstance(profiles, dict):
        raise UserError(f"profiles: {profiles!r} is not a table")
    for name, entries in profiles.items():
        if not isinstance(entries, dict):
            raise UserError(f"profiles.{name}: {entries!r} is not a table")
        for word, value in entries.items():
            if word in TABLES and isinstance(value, dict):
                raise UserError(f'profiles.{name}.{word}: put dotted keys in quotes, as in "parts.fit.epochs" = 1')


def check_shape(raw: dict[str, Any]) -> None:
    """UserError with the dotted path of the first entry that cannot be in a suite."""
    check_values(raw)
    _keys(raw, {**TABLES, **SCALARS}, "")
    for name in ("recipes", "data"):
        if not raw.get(name):
            raise UserError(f"{name}: is missing or empty")
    if not re.fullmatch(r"[\w-][\w .-]*", raw.get("name", "suite")):
        raise UserError(f'name: "{raw["name"]}" cannot be the name of a file')
    if raw.get("trials", 1) < 1:
        raise UserError(f"trials: {raw['trials']} is not at least 1")
    for table in ("axes", "recipes", "probes", "parts"):
        _names(raw.get(table, {}), table)
    for axis, values in raw.get("axes", {}).items():
        _axis(axis, values)
    for table in ("recipes", "probes", "parts"):
        for name, entry in raw.get(table, {}).items():
            if not isinstance(entry, dict):
                raise UserError(f"{table}.{name}: {entry!r} is not a table")
            if table != "recipes" and not isinstance(entry.get("use"), str):
                raise UserError(f'{table}.{name}.use: is missing or no text; it names the part, as in {{ use = "..." }}')
    for name, recipe in raw["recipes"].items():
        _keys(recipe, RECIPE, f"recipes.{name}.")
        if not recipe.get("steps"):
            raise UserError(f"recipes.{name}.steps: is missing or empty")
    board = raw.get("board", {})
    _keys(board, BOARD, "board.")
    for name in ("rows", "columns", "without", "rank"):
        for i, word in enumerate(board.get(name, [])):
            if not isinstance(word, str):
                raise UserError(f"board.{name}.{i}: {word!r} is not a text")
    for where, table in one_or_more(raw.get("tickets", [])).items():
        _tickets(table, f"{where}.")
    for i, entry in enumerate(raw.get("published", [])):
        _published(entry, f"published.{i}.", raw)
    for i, entry in enumerate(raw.get("figures", [])):
        _figure(entry, f"figures.{i}.")


def check_values(value: Any, where: str = "", depth: int = 0) -> None:
    """Every value is a text, a truth value or a finite 64-bit number: TOML's dates, nan, inf and larger numbers have no use here."""
    if depth > DEPTH:
        raise UserError(f"{where}: lists and tables are nested too deep")
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            check_values(item, f"{where}.{name}" if where else str(name), depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {value} is not a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{where}: the number has more than 64 bits")
    elif isinstance(value, str) and not _encodable(value):
        raise UserError(f"{where}: the text is not valid Unicode")
    elif not isinstance(value, str | int | float):
        raise UserError(f"{where}: {value} is a date or time; use a text in quotes, a number, true or false")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(names: Iterable[str], table: str) -> None:
    for name in names:
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f'{table}."{name}": a name is made of letters, digits, "-" and "_"')
        if table == "axes" and name in RESERVED:
            raise UserError(f'axes.{name}: "{name}" says where a number stands on the board; call the axis something else')


def _axis(axis: str, values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise UserError(f"axes.{axis}: {values!r} is not a list of at least one value")
    seen = set()
    for value in values:
        if isinstance(value, str) and value.startswith("$"):
            raise UserError(f'axes.{axis}: "{value}" is not a value; one axis cannot mean another')
        if text(value) in seen:
            raise UserError(f"axes.{axis}: {text(value)} is there twice")
        seen.add(text(value))


def _published(entry: Any, where: str, raw: dict[str, Any]) -> None:
    _keys(entry, PUBLISHED, where)
    for name in ("probe", "value", "source"):
        if name not in entry:
            raise UserError(f"{where}{name}: is missing")
    if entry["probe"].split(".")[0] not in raw.get("probes", {}):
        raise unknown("probe", entry["probe"], raw.get("probes", {}), f"{where}probe")
    for word in entry.get("where", {}):
        if word not in RESERVED and word not in raw.get("axes", {}):
            raise unknown("axis", word, [*raw.get("axes", {}), *RESERVED], f"{where}where")
    if isinstance(entry["value"], list):
        _listed(entry, where)


def _listed(entry: dict[str, Any], where: str) -> None:
    """UserError unless a list of published numbers goes with one list in `where`."""
    for i, value in enumerate(entry["value"]):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{where}value.{i}: {value!r} is not a number")
    along = [values for values in entry.get("where", {}).values() if isinstance(values, list)]
    if len(along) != 1 or len(along[0]) != len(entry["value"]):
        raise UserError(f"{where}value: is a list of {len(entry['value'])}, so just one entry of where must be a list as long")


def one_by_one(published: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Published numbers with every list of values taken apart: each with its own value along the axis."""
    found = []
    for entry in published:
        if not isinstance(entry["value"], list):
            found.append(entry)
            continue
        (axis,) = (axis for axis, values in entry["where"].items() if isinstance(values, list))
        pairs = zip(entry["where"][axis], entry["value"], strict=True)
        found += [{**entry, "where": {**entry["where"], axis: place}, "value": value} for place, value in pairs]
    return found


def one_or_more(tickets: Any) -> dict[str, Any]:
    """The tables by dotted path, whether they are written as [tickets] or as several [[tickets]]."""
    return {f"tickets.{i}": table for i, table in enumerate(tickets)} if isinstance(tickets, list) else {"tickets": tickets}


def _tickets(table: Any, where: str) -> None:
    _keys(table, TICKETS, where)
    for name in list(TICKETS)[:NEEDED]:
        if name not in table:
            raise UserError(f"{where}{name}: is missing; no verdict without dense, random and fresh controls, a measure and a where")


def _figure(entry: Any, where: str) -> None:
    """What its words mean is checked by `rtbench.ranking.figures`."""
    _keys(entry, FIGURE, where)
    for name in ("kind", "y"):
        if name not in entry:
            raise UserError(f"{where}{name}: is missing")
    for name in ("y", "lines", "panels"):
        for i, word in enumerate(entry.get(name, []) if isinstance(entry.get(name), list) else []):
            if not isinstance(word, str):
                raise UserError(f"{where}{name}.{i}: {word!r} is not a text")


def _keys(table: Any, allowed: dict[str, Any], where: str) -> None:
    """UserError unless `table` has these entries only, each of its type."""
    if not isinstance(table, dict):
        raise UserError(f"{where.rstrip('.')}: {table!r} is not a table")
    for word, value in table.items():
        if word not in allowed:
            raise unknown("entry", word, allowed, f"{where}{word}")
        kinds = allowed[word] if isinstance(allowed[word], tuple) else (allowed[word],)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"{where}{word}: {value!r} is not {' or '.join(TYPES[kind] for kind in kinds)}")
