"""A suite, planned: which of it is wanted, over which parts and data, on what device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtbench.errors import UserError
from rtbench.planning import suite as suites
from rtbench.planning.plan import Plan, expand
from rtbench.plugins import Catalogue, catalogue

if TYPE_CHECKING:
    from rtbench.engine.context import Options


@dataclass
class Study:
    """A suite, planned over a catalogue, and what it is run with."""

    plan: Plan
    catalogue: Catalogue
    options: Options


def study(
    suite: str, profile: str | None = None, set: Iterable[str] = (), only: Mapping[str, list[str]] | Iterable[str] = (),
    trials: int | None = None, device: str = "auto", plugins: Iterable[str] = (), data: str | None = None,
) -> Study:  # fmt: skip
    """Loads the suite and expands it; UserError for every mistake in it, before anything is written.

    set, plugins: one text or several. only: {"net": ["mlp"]}, or texts such as "net=mlp".
    """
    set, plugins, only = ((value,) if isinstance(value, str) else value for value in (set, plugins, only))
    only = dict(only) if isinstance(only, Mapping) else chosen(only)
    import torch

    from rtbench.data.splits import data_digest
    from rtbench.engine.context import Options, load_data
    from rtbench.ranking.figures import declared
    from rtbench.ranking.headings import check_columns, ranking, validate

    loaded = suites.load(suite, profile, set, trials)
    found = catalogue(plugins)
    options = Options(root=data_root(data), device=pick_device(device), threads=torch.get_num_threads())

    def digest(part: dict[str, Any], where: str) -> str:
        name = str(part)
        if name not in digests:
            try:
                digests[name] = data_digest(load_data(part, found, options))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        return digests[name]

    digests: dict[str, str] = {}
    try:
        validate(loaded)
    except UserError as error:
        raise UserError(f"{loaded.path}: {error}") from None
    expanded = expand(loaded, found, digest, only)
    ranking(expanded)  # now, not when everything has run
    whole = not only and loaded.axes == loaded.written
    try:
        if whole:
            check_columns(expanded)
        declared(expanded, whole)
    except UserError as error:
        raise UserError(f"{loaded.path}: {error}") from None
    return Study(expanded, found, options)


def chosen(texts: Iterable[str], option: str = "--only ") -> dict[str, list[str]]:
    """{"recipe": ["dense"], "net": ["mlp", "lenet"]} from recipe=dense, net=mlp,lenet; texts are read one by one."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for piece in re.split(r",(?![^\[]*\])", text):  # a list such as [64, 32] is one value
            word, sign, rest = piece.partition("=")
            name, value = (word.strip(), rest) if sign else (name, piece)
            if not name:
                raise UserError(f'{option}"{piece}" is not of the form recipe=name or axis=value')
            found.setdefault(name, []).append(value.strip())
    return found


def data_root(given: str | None) -> str:
    """The data folder: given, or RTBENCH_DATA, or ./data."""
    return str(Path(given or os.environ.get("RTBENCH_DATA") or "data").expanduser().resolve())


def pick_device(name: str) -> str:
    """The device of that name, "auto" being the first GPU if there is one; UserError where it is not here."""
    import torch

    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device "{name}" is not available: {str(error).splitlines()[0]}') from None
    return name
