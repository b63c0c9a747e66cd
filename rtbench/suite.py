"""Suites: TOML files that declare a study. Read here, expanded in `rtbench.plan`. A suite executes no code.

The whole language: axes and "$axis" (whole strings only), recipes of steps, `repeat`, parts, probes, profiles, published numbers.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtbench.errors import UserError, unknown

TABLES = {"axes": dict, "recipes": dict, "probes": dict, "parts": dict, "profiles": dict, "board": dict, "published": list}
SCALARS = {"name": str, "trials": int, "data": (str, dict), "about": str}
BOARD = {"rows": list, "columns": list, "rank": (str, list), "show": str}
PUBLISHED = {"where": dict, "probe": str, "value": (int, float), "source": str, "caveat": str}
RECIPE = {"steps": list, "data": (str, dict)}


@dataclass(frozen=True)
class Suite:
    """A suite file as read, profile and overrides applied; `path` is where it came from, for messages and relative files."""

    path: str
    name: str
    trials: int
    data: Any
    axes: dict[str, list[Any]]
    recipes: dict[str, dict[str, Any]]
    probes: dict[str, dict[str, Any]]
    parts: dict[str, dict[str, Any]]
    board: dict[str, Any]
    published: list[dict[str, Any]]


def shipped() -> dict[str, Path]:
    """The suites that come with rtbench, by name."""
    here = Path(__file__).parent
    folder = here / "suites" if (here / "suites").is_dir() else here.parent / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a suite named by path or by its shipped name; UserError with the near miss."""
    if name.endswith(".toml") or "/" in name:
        if not Path(name).is_file():
            raise UserError(f'no suite file "{name}"')
        return Path(name)
    if name not in shipped():
        raise unknown("suite", name, shipped())
    return shipped()[name]


def load(name: str, profile: str | None = None, overrides: Iterable[str] = (), trials: int | None = None) -> Suite:
    """Reads a suite; `overrides` are texts "a.b=c" or "a.b+=c". UserError names the file and the dotted path."""
    path = find(name)
    try:
        raw = _read(path)
        profiles = raw.get("profiles", {})
        if profile is not None:
            if profile not in profiles:
                raise unknown("profile", profile, profiles)
            for dotted, value in profiles[profile].items():
                assign(raw, dotted, copy.deepcopy(value), f"profiles.{profile}")
        for text in overrides:
            override(raw, text)
        if trials is not None:
            raw["trials"] = trials
        return _build(raw, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"is not valid TOML: {error}") from None


def override(raw: dict[str, Any], text: str) -> None:
    """Applies one `--set a.b=c` (the value is read as TOML, or else as a text) or `a.b+=c` (appends to a list)."""
    dotted, sign, value = text.partition("=")
    if not sign or not dotted.strip("+ "):
        raise UserError(f'--set "{text}" is not of the form a.b=c or a.b+=c')
    append, dotted = dotted.endswith("+"), dotted.rstrip("+ ").strip()
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    assign(raw, dotted, parsed, f"--set {dotted}", append)


def assign(raw: dict[str, Any], dotted: str, value: Any, where: str, append: bool = False) -> None:
    """Sets raw[a][b] = value for "a.b"; list items by their number. All but the last word must exist."""
    *parents, last = dotted.split(".")
    here: Any = raw
    for depth, word in enumerate(parents):
        here = _enter(here, word, ".".join(parents[:depth]), where, create=depth == 0 and word in TABLES)
    if isinstance(here, list):
        _enter(here, last, ".".join(parents), where)
        here[int(last)] = [*here[int(last)], value] if append else value
    elif not isinstance(here, dict):
        raise UserError(f'{where}: "{".".join(parents)}" is not a table')
    elif append:
        if not isinstance(here.get(last), list):
            raise UserError(f'{where}: "{dotted}" is not a list to append to')
        here[last] = [*here[last], value]
    else:
        here[last] = value


def _enter(here: Any, word: str, path: str, where: str, create: bool = False) -> Any:
    if isinstance(here, list):
        if not word.isdigit() or int(word) >= len(here):
            raise UserError(f'{where}: "{path}" is a list of {len(here)}; "{word}" is not one of 0 to {len(here) - 1}')
        return here[int(word)]
    if not isinstance(here, dict):
        raise UserError(f'{where}: "{path}" is not a table')
    if create:
        here.setdefault(word, {})
    if word not in here:
        raise unknown("entry", word, here, where)
    return here[word]


def _build(raw: dict[str, Any], path: Path) -> Suite:
    """Checks the shape of every table; what parts and steps mean is checked by the planner."""
    _keys(raw, {**TABLES, **SCALARS}, "")
    for name in ("recipes", "data"):
        if name not in raw:
            raise UserError(f"{name}: is missing")
    trials = raw.get("trials", 1)
    if trials < 1:
        raise UserError(f"trials: {trials} is not at least 1")
    for axis, values in raw.get("axes", {}).items():
        if not isinstance(values, list) or not values:
            raise UserError(f"axes.{axis}: {values!r} is not a list of at least one value")
    for table in ("recipes", "probes", "parts"):
        for name, entry in raw.get(table, {}).items():
            if not isinstance(entry, dict):
                raise UserError(f"{table}.{name}: {entry!r} is not a table")
            if table != "recipes" and "use" not in entry:
                raise UserError(f'{table}.{name}.use: is missing; it names the part, as in {{ use = "..." }}')
    for name, recipe in raw["recipes"].items():
        _keys(recipe, RECIPE, f"recipes.{name}.")
        if not recipe.get("steps"):
            raise UserError(f"recipes.{name}.steps: is missing or empty")
    _keys(raw.get("board", {}), BOARD, "board.")
    for i, entry in enumerate(raw.get("published", [])):
        _published(entry, f"published.{i}.", raw)
    return Suite(
        path=str(path), name=raw.get("name", path.stem), trials=trials, data=raw["data"], axes=raw.get("axes", {}),
        recipes=raw["recipes"], probes=raw.get("probes", {}), parts=raw.get("parts", {}),
        board=raw.get("board", {}), published=raw.get("published", []),
    )  # fmt: skip


def _published(entry: Any, where: str, raw: dict[str, Any]) -> None:
    _keys(entry, PUBLISHED, where)
    for name in ("probe", "value", "source"):
        if name not in entry:
            raise UserError(f"{where}{name}: is missing")
    if entry["probe"].split(".")[0] not in raw.get("probes", {}):
        raise unknown("probe", entry["probe"], raw.get("probes", {}), f"{where}probe")
    for word in entry.get("where", {}):
        if word not in ("recipe", "step", "round") and word not in raw.get("axes", {}):
            raise unknown("axis", word, raw.get("axes", {}), f"{where}where")


def _keys(table: Any, allowed: dict[str, Any], where: str) -> None:
    if not isinstance(table, dict):
        raise UserError(f"{where.rstrip('.')}: {table!r} is not a table")
    for word, value in table.items():
        if word not in allowed:
            raise unknown("entry", word, allowed, f"{where}{word}")
        if not isinstance(value, allowed[word]) or isinstance(value, bool):
            names = {dict: "a table", list: "a list", str: "a text", int: "a whole number"}
            kind = names.get(allowed[word], "of the right type")
            raise UserError(f"{where}{word}: {value!r} is not {kind}")
