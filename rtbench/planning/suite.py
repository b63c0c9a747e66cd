"""Suites: TOML files that declare a study. Read here, expanded in `rtbench.planning.plan`. A suite executes no code.

The whole language: axes and "$axis" (whole strings only), recipes of steps, `repeat`, parts, probes, profiles, published numbers.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.keys import key
from rtbench.planning.overrides import assign, override
from rtbench.planning.shape import check_profiles, check_shape, check_values, one_by_one, one_or_more, text

__all__ = ["Suite", "assign", "find", "load", "override", "shipped", "text"]


@dataclass(frozen=True)
class Suite:
    """A suite file as read, profile and overrides applied; `path` is where it came from, for messages and relative files.

    written: the axes as the file has them, before profile and overrides.
    """

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
    written: dict[str, list[Any]] = field(default_factory=dict)
    tickets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By dotted path."""
    about: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)
    profile: str = ""
    """One that changes something, and what it sets as dotted paths."""
    changed: list[str] = field(default_factory=list)

    def origin(self) -> str:
        """A name that two suite files do not share, even if both are called alike; of a shipped one the same on every machine."""
        path = Path(self.path).resolve()
        return key([path.stem] if shipped().get(path.stem) == path else [str(path)])[:12]


def shipped() -> dict[str, Path]:
    """The suites that come with rtbench, by name."""
    here = Path(__file__).parents[1]
    folder = here / "suites" if (here / "suites").is_dir() else here.parent / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a suite named by path or by its shipped name; UserError with the near miss."""
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        try:
            if path.is_file():
                return path
        except OSError as error:
            raise UserError(f'suite file "{name}" cannot be read: {error.strerror}') from None
        raise unknown("suite file", name, [str(other) for other in path.parent.glob("*.toml")])
    if name not in shipped():
        raise unknown("suite", name, shipped())
    return shipped()[name]


def load(name: str, profile: str | None = None, overrides: Iterable[str] = (), trials: int | None = None) -> Suite:
    """Reads a suite; `overrides` are texts "a.b=c" or "a.b+=c". UserError names the file and the dotted path."""
    path = find(name)
    try:
        raw = _read(path)
        check_values(raw)
        check_profiles(raw)
        written = copy.deepcopy(raw["axes"]) if isinstance(raw.get("axes"), dict) else {}
        changed = list[str]()
        if profile is not None:
            profiles = raw.get("profiles", {})
            if profile not in profiles:
                raise unknown("profile", profile, profiles)
            changed = list(profiles[profile])
            for dotted, value in profiles[profile].items():
                assign(raw, dotted, value, f"profiles.{profile}")
        for each in overrides:
            override(raw, each)
        if trials is not None:
            raw["trials"] = trials
        check_shape(raw)
        _check_added(raw, list(written))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Suite(
        path=str(path), name=raw.get("name", path.stem), trials=raw.get("trials", 1), data=raw["data"], axes=raw.get("axes", {}),
        recipes=raw["recipes"], probes=raw.get("probes", {}), parts=raw.get("parts", {}),
        board=raw.get("board", {}), published=one_by_one(raw.get("published", [])), written=written,
        tickets=one_or_more(raw.get("tickets", [])), figures=raw.get("figures", []), about=raw.get("about", ""),
        profile=(profile or "") if changed else "", changed=changed,
    )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise UserError("is not valid TOML: its lists or tables are nested too deep") from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise UserError(f"is not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None


def _check_added(raw: dict[str, Any], known: list[str]) -> None:
    """An axis that an override added and nothing mentions is a misspelt one."""
    for axis in raw.get("axes", {}):
        if axis not in known and f"${axis}" not in _texts(raw):
            raise unknown("axis", axis, known, f"axes.{axis}")


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
