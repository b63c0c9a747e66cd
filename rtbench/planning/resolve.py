"""From what a suite writes to a resolved part: {"use", "version", "knobs"}, every knob in it, nested parts resolved too."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from rtbench import keys
from rtbench.errors import UserError, unknown
from rtbench.parts.annotations import takes_list
from rtbench.parts.kinds import knobs, lender, version
from rtbench.parts.knobs import Knob, check_all
from rtbench.plugins import Catalogue, Part

DEPTH = 8
"""Parts nested deeper than this are a mistake."""
ROUND = ""
"""Stands for the round among the axes that a part looked at; no axis has an empty name."""

Resolved = dict[str, Any]


@dataclass
class Resolver:
    """Resolves part references of one suite; names are looked up in the suite's parts first, then in the catalogue.

    cell: the axes' values. mentioned: the axes that were looked at since it was last emptied.
    """

    parts: dict[str, Any]
    catalogue: Catalogue
    cell: dict[str, Any] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    _memo: dict[str, dict[tuple[str, ...], dict[tuple[str, ...], Resolved]]] = field(default_factory=dict)
    """What was asked -> the axes looked at -> their values -> the answer."""

    def __call__(self, kind: str, ref: Any, where: str, extra: dict[str, Any] | None = None, turn: int | None = None) -> Resolved:
        """The resolved part. extra: knobs written beside `ref`. turn: picks from knobs given as one value per round."""
        known = self._memo.setdefault(repr((kind, ref, extra)), {})
        now = {axis: repr(value) for axis, value in self.cell.items()} | {ROUND: str(turn)}
        for axes, answers in known.items():
            if resolved := answers.get(tuple(now[axis] for axis in axes)):
                self.mentioned.update(axes)
                return resolved
        before, self.mentioned = self.mentioned, set()
        try:
            resolved = self._resolve(kind, ref, where, extra or {}, turn, ())
            axes = tuple(sorted(self.mentioned))
            known.setdefault(axes, {})[tuple(now[axis] for axis in axes)] = resolved
            return resolved
        finally:
            self.mentioned |= before

    def substitute(self, value: Any, where: str) -> Any:
        """The value with every whole string "$axis" replaced by the cell's value of that axis."""
        if isinstance(value, str) and value.startswith("$"):
            axis = value[1:]
            if axis not in self.cell:
                raise unknown("axis", axis, self.cell, where)
            self.mentioned.add(axis)
            return self.cell[axis]
        if isinstance(value, list):
            return [self.substitute(item, f"{where}.{i}") for i, item in enumerate(value)]
        if isinstance(value, dict):
            return {name: self.substitute(item, f"{where}.{name}") for name, item in value.items()}
        return value

    def _resolve(self, kind: str, ref: Any, where: str, extra: dict[str, Any], turn: int | None, trail: tuple[str, ...]) -> Resolved:
        """trail: where the parts stand that this one is nested in."""
        beside = where.rpartition(".")[0]
        part, given, where = self._find(kind, self.substitute(ref, where), where)
        if where in trail or len(trail) > DEPTH:
            raise UserError(f"{where}: parts are nested {'in a circle' if where in trail else 'too deep'}: {', '.join(trail)}, {where}")
        if trail and kind == "probe" and lender(part.function) is not None:
            raise UserError(f'{where}.use: "{part.name}" needs other runs, so it cannot be measured inside of one')
        given = {**given, **self.substitute(extra, beside)}
        places = {name: f"{beside}.{name}" for name in extra}
        declared = knobs(kind, part.function)
        if turn is not None:
            given = {name: self._pick(value, declared, name, turn, places.get(name, f"{where}.{name}")) for name, value in given.items()}

        def nest(inner: str, value: Any, place: str) -> Any:
            return self._resolve(inner, value, place, {}, None, (*trail, where))

        checked = check_all(declared, given, where, nest, places)
        if checked.get("norm") == "linf" and kind == "attack" and Fraction(checked["eps"]) > 1:
            # 255ths written as input units: whatever is measured under it says nothing.
            raise UserError(f'{where}.eps: {checked["eps"]} exceeds the range [0, 1] of a pixel; did you mean "{checked["eps"]}/255"?')
        norms = getattr(part.function, "norms", ())
        if kind == "attack" and norms and checked.get("norm", norms[0]) not in norms:
            raise UserError(f'{where}.norm: {part.name} takes {" and ".join(norms)}, not "{checked["norm"]}"')
        if together := getattr(part.function, "check", None):
            try:
                together(checked)
            except (ValueError, UserError) as error:
                raise UserError(f"{where}: {error}") from None
        return {"use": part.name, "version": version(part.function), "knobs": checked}

    def _find(self, kind: str, ref: Any, where: str) -> tuple[Part, dict[str, Any], str]:
        """The part that a name or a table with `use` means, the knobs given in the table, and where that table is."""
        if isinstance(ref, str) and ref not in self.parts:
            mine = [name for name, table in self.parts.items() if (kind, table["use"]) in self.catalogue.parts]
            return self.catalogue.get(kind, ref, where, mine), {}, where
        if isinstance(ref, str):
            table, where = self.substitute(self.parts[ref], f"parts.{ref}"), f"parts.{ref}"
        elif isinstance(ref, dict):
            table = self.substitute(ref, where)
        else:
            raise UserError(f"{where}: {ref!r} names no {kind}")
        if not isinstance(table.get("use"), str):
            raise UserError(f'{where}.use: is missing or no name; it names the {kind}, as in {{ use = "..." }}')
        given = {name: value for name, value in table.items() if name != "use"}
        return self.catalogue.get(kind, table["use"], f"{where}.use"), given, where

    def _pick(self, value: Any, declared: dict[str, Knob], name: str, turn: int, where: str) -> Any:
        """A list for a knob that takes no list holds one value per round."""
        if not isinstance(value, list) or name not in declared or takes_list(declared[name].annotation):
            return value
        self.mentioned.add(ROUND)
        if turn >= len(value):
            raise UserError(f"{where}: has no value for round {turn + 1}: the list ends before it")
        return value[turn]


def load_part(path: Any, options: dict[str, Any], where: str, folder: Path) -> tuple[Resolved, dict[str, str]]:
    """The part of a `load` stage, named by the file's digest, and where that file lies; UserError if it cannot be read."""
    strict, rename, masks = options.get("strict", True), options.get("rename", {}), options.get("masks", "file")
    beside = where.rpartition(".")[0]
    if not isinstance(strict, bool):
        raise UserError(f"{beside}.strict: {strict!r} is not true or false")
    if not isinstance(rename, dict) or not all(isinstance(value, str) for value in rename.values()):
        raise UserError(f"{beside}.rename: {rename!r} is not a table of pattern = replacement")
    if masks not in ("file", "nonzero", "ones"):
        raise unknown("choice", masks, ["file", "nonzero", "ones"], f"{beside}.masks")
    if not isinstance(path, str):
        raise UserError(f"{where}: {path!r} is not a file name")
    try:
        file = folder / Path(path).expanduser()
        digest = keys.file_digest(file)
    except FileNotFoundError:
        raise UserError(f'{where}: no checkpoint file "{file}"') from None
    except (OSError, ValueError, RuntimeError) as error:  # a folder, no permission, an impossible name, no such home
        raise UserError(f'{where}: "{path}" cannot be read: {error}') from None
    knobs = {"sha256": digest, "strict": strict, "rename": rename, "masks": masks}
    return {"use": "load", "version": 1, "knobs": knobs}, {digest: str(file.resolve())}
