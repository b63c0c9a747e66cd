"""Changes to a suite before it is read: `--set a.b=c`, `--set a.b+=c` and the entries of a profile."""

from __future__ import annotations

import tomllib
from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.planning.shape import TABLES


def override(raw: dict[str, Any], text: str) -> None:
    """Applies one `--set a.b=c` (the value is read as TOML, or else as a text) or `a.b+=c` (appends to a list)."""
    dotted, sign, value = text.partition("=")
    append, dotted = dotted.rstrip().endswith("+"), dotted.rstrip("+ ").strip()
    if not sign or not all(word.strip() for word in dotted.split(".")):
        raise UserError(f'--set "{text}" is not of the form a.b=c or a.b+=c')
    if dotted.split(".")[0] == "profiles":
        raise UserError(f"--set {dotted}: profiles are applied before --set; set the entry itself")
    assign(raw, dotted, _value(value.strip()), f"--set {dotted}", append)


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def assign(raw: dict[str, Any], dotted: str, value: Any, where: str, append: bool = False) -> None:
    """Sets raw[a][b] = value for "a.b"; list items by their number. All but the last word must exist."""
    *parents, last = dotted.split(".")
    here: Any = raw
    for depth, word in enumerate(parents):
        if depth == 0 and word in TABLES:
            here.setdefault(word, {})
        here = _enter(here, word, ".".join(parents[:depth]), where)
    place: Any = int(last) if isinstance(here, list) and _is_number(last) else last
    if append or isinstance(here, list):
        old = _enter(here, last, ".".join(parents), where)
        if append and not isinstance(old, list):
            raise UserError(f'{where}: "{dotted}" is not a list to append to')
        here[place] = [*old, value] if append else value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise UserError(f'{where}: "{".".join(parents)}" is not a table')


def _enter(here: Any, word: str, path: str, where: str) -> Any:
    if isinstance(here, list):
        if not _is_number(word) or int(word) >= len(here):
            raise UserError(f'{where}: "{path}" has {len(here)} items, numbered from 0; "{word}" is none of them')
        return here[int(word)]
    if not isinstance(here, dict):
        raise UserError(f'{where}: "{path}" is not a table')
    if word not in here:
        raise unknown("entry", word, here, where)
    return here[word]


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 10
