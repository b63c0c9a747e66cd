"""What a board shows and ranks by: what the suite's [board] asks for, or else what is worth showing of its probes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.planning.plan import Plan
from rtbench.planning.suite import Suite
from rtbench.ranking import worst
from rtbench.ranking.budgets import EPOCHS, PASSES, SECONDS, VERSUS
from rtbench.ranking.rows import Row, attack_of

CONSTANT = "constant"
BESIDE = ("#", "published", "ticket", "trials", "flags", "status", EPOCHS, PASSES, SECONDS, CONSTANT)
"""What [board] without can name besides axes and probes; "constant" is every axis that has one value in all rows."""


def validate(suite: Suite) -> None:
    """UserError with the dotted path of the first name in the suite's [board] that the suite does not have."""
    config = suite.board
    if config.get("show", "all") not in ("all", "last"):
        raise unknown("choice", config["show"], ["all", "last"], "board.show")
    for i, name in enumerate(config.get("rows", [])):
        if name not in suite.axes and name not in ("recipe", "step", "round"):
            raise unknown("axis", name, [*suite.axes, "recipe", "step", "round"], f"board.rows.{i}")
    if worst.WORST in suite.probes:
        raise UserError(f"probes.{worst.WORST}: the board calls the worst case over attacks so; give the probe another name")
    known = [*suite.probes, worst.WORST]
    for i, name in enumerate(config.get("columns", [])):
        if str(name).split(".")[0] not in known:
            raise unknown("probe", name, known, f"board.columns.{i}")
    for i, name in enumerate(config.get("without", [])):
        places = [*suite.axes, "recipe", "step", "round", *known, *BESIDE]
        if name.removesuffix(VERSUS).split(".")[0] not in places:
            raise unknown("column", name, places, f"board.without.{i}")
    if not re.fullmatch(r"[\w:.+/-]+", config.get("label", "tab:x")):
        raise UserError(f'board.label: "{config["label"]}" is no label of LaTeX, such as tab:robust')
    rank = config.get("rank", [])
    for i, name in enumerate(rank if isinstance(rank, list) else [rank]):
        if str(name).split(".")[0] not in known:
            raise unknown("probe", name, known, f"board.rank.{i}" if isinstance(rank, list) else "board.rank")


def ranking(plan: Plan) -> list[str]:
    """What the suite ranks by; without a word of it the last probe with an attack on its own, or else the first such probe.

    UserError where it says "worst" and the plan has worst cases under several threats, or names one that there is not.
    """
    rank = plan.suite.board.get("rank")
    if rank:
        places = [(name, f"board.rank.{i}") for i, name in enumerate(rank)] if isinstance(rank, list) else [(rank, "board.rank")]
        return [worst.meant(plan, name, where) for name, where in places]
    parts = _parts(plan)
    apart = {probe.split(".")[0] for point in plan.points for probe, key in point.probes.items() if plan.stages[key].borrowed()}
    alone = [probe for probe in plan.suite.probes if probe not in apart]
    attacked = [probe for probe in alone if probe in parts and attack_of(parts[probe])[0]]
    return attacked[-1:] or alone[:1]


def check_columns(plan: Plan) -> None:
    """UserError where [board] columns names a worst case that no network of the whole suite has."""
    there = worst.names(plan)
    for i, name in enumerate(plan.suite.board.get("columns", [])):
        if name.startswith(f"{worst.WORST}.") and name not in there:
            raise unknown("column", name, there, f"board.columns.{i}")


def _parts(plan: Plan) -> dict[str, dict[str, Any]]:
    """The resolved part of each probe, in the first cell that has it."""
    parts: dict[str, dict[str, Any]] = {}
    for point in plan.points:
        for probe, key in point.probes.items():
            parts.setdefault(probe, plan.stages[key].part)
    return parts


def sparsity(plan: Plan) -> dict[str, str]:
    """Probes that tell how sparse the network is, and whether they count what is there ("density") or what is not ("sparsity")."""
    words = ("density", "sparsity")
    parts = _parts(plan)
    named = ((probe, word) for probe in plan.suite.probes if probe in parts for word in (probe, parts[probe]["use"]))
    return {probe: word for probe, word in named if word in words}


def axes(suite: Suite) -> dict[str, list[Any]]:
    """The columns left of the numbers, "recipe" among them, with their values: first those that the suite orders."""
    values: dict[str, list[Any]] = {"recipe": list(suite.recipes), **suite.axes}
    names = suite.board.get("rows", [])
    first = [] if "recipe" in names else ["recipe"]
    return {name: values[name] for name in dict.fromkeys([*first, *names, *values]) if name in values}


def columns(plan: Plan, rows: list[Row]) -> list[str]:
    """The suite's columns; or every probe's own number, sparsity first, all numbers of a probe that has no own, and worst cases.

    A probe with one stage per source has one number per source.
    """
    first, planned = list(sparsity(plan)), _parts(plan)
    there = list(dict.fromkeys(name for row in rows for name in row.probes if ".layer." not in name))
    worsts = [name for name in there if name.startswith(f"{worst.WORST}.")]
    if plan.suite.board.get("columns"):
        wanted = plan.suite.board["columns"]
        named = [worsts if name == worst.WORST else [name] if name in worsts else _named(name, planned) for name in wanted]
        return list(dict.fromkeys(name for names in named for name in names))
    chosen = []
    for probe in sorted(planned, key=lambda name: (name not in first, list(plan.suite.probes).index(name.split(".")[0]))):
        parts = [name for name in there if name.startswith(f"{probe}.")]
        chosen += [probe] if probe in there or not parts else parts
    return chosen + worsts


def _named(name: str, planned: Iterable[str]) -> list[str]:
    """The columns that a name in `[board] columns` means: itself, or one per source of a probe that has no number of its own."""
    if name in planned or "." in name:
        return [name] if name.split(".")[0] in {probe.split(".")[0] for probe in planned} else []
    return [probe for probe in planned if probe.startswith(f"{name}.")]
