"""From what a suite writes to a resolved part: {"use", "version", "knobs"}, every knob in it, nested parts resolved too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.keys import canonical
from rtbench.kinds import knobs, version
from rtbench.knobs import check_all
from rtbench.plugins import Catalogue

DEPTH = 8
"""Parts nested deeper than this are a cycle."""


@dataclass
class Resolver:
    """Resolves part references of one suite; names are looked up in the suite's parts first, then in the catalogue."""

    parts: dict[str, Any]
    catalogue: Catalogue
    cell: dict[str, Any] = field(default_factory=dict)
    mentioned: set[str] = field(default_factory=set)
    _memo: dict[str, tuple[dict[str, Any], frozenset[str]]] = field(default_factory=dict)

    def __call__(self, kind: str, ref: Any, where: str, extra: dict[str, Any] | None = None, turn: int | None = None) -> dict[str, Any]:
        """The resolved part. extra: knobs written in the step itself. turn: picks from knobs given as one value per round."""
        memo = canonical([kind, str(ref), extra, turn, [(axis, str(value)) for axis, value in sorted(self.cell.items())]])
        if memo not in self._memo:
            outer, self.mentioned = self.mentioned, set()
            resolved = self._resolve(kind, ref, where, extra or {}, turn, 0)
            self._memo[memo] = resolved, frozenset(self.mentioned)
            self.mentioned = outer
        resolved, mentioned = self._memo[memo]
        self.mentioned |= mentioned
        return resolved

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

    def _resolve(self, kind: str, ref: Any, where: str, extra: dict[str, Any], turn: int | None, depth: int) -> dict[str, Any]:
        if depth > DEPTH:
            raise UserError(f"{where}: parts are nested in a circle")
        ref = self.substitute(ref, where)
        table, where = self._table(kind, ref, where)
        table = self.substitute(table, where)
        part = self.catalogue.get(kind, table["use"], f"{where}.use" if isinstance(ref, dict) or ref in self.parts else where)
        given = {name: value for name, value in table.items() if name != "use"}
        given.update(self.substitute(extra, where))
        declared = knobs(kind, part.function)
        if turn is not None:
            given = {name: _pick(value, declared, name, turn, where) for name, value in given.items()}

        def nest(inner: str, value: Any, place: str) -> Any:
            return self._resolve(inner, value, place, {}, None, depth + 1)

        try:
            checked = check_all(declared, given, where, nest)
            if together := getattr(part.function, "check", None):
                together(checked)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        return {"use": part.name, "version": version(part.function), "knobs": checked}

    def _table(self, kind: str, ref: Any, where: str) -> tuple[dict[str, Any], str]:
        if isinstance(ref, dict):
            if not isinstance(ref.get("use"), str):
                raise UserError(f'{where}.use: is missing; it names the {kind}, as in {{ use = "..." }}')
            return ref, where
        if not isinstance(ref, str):
            raise UserError(f"{where}: {ref!r} is not the name of a {kind}")
        if ref in self.parts:
            return self.parts[ref], f"parts.{ref}"
        if (kind, ref) not in self.catalogue.parts:  # the near miss may be a part of the suite
            same = [name for name in self.parts if (kind, self.parts[name]["use"]) in self.catalogue.parts]
            if not self.catalogue.aside and (kind, ref) not in self.catalogue.clashes:
                raise unknown(kind, ref, {*same, *self.catalogue.names(kind)}, where)
        return {"use": ref}, where


def _pick(value: Any, declared: dict[str, Any], name: str, turn: int, where: str) -> Any:
    """A list for a knob that takes no list holds one value per round."""
    if not isinstance(value, list) or name not in declared or "list" in str(declared[name].annotation):
        return value
    if turn >= len(value):
        raise UserError(f"{where}.{name}: has {len(value)} values, but this is round {turn + 1}")
    return value[turn]
