"""The board: a plan's points joined with the records of their probes, one row per state, its trials together. Plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rtbench import rows as joining
from rtbench import table as tables
from rtbench import worst
from rtbench.errors import UserError, unknown
from rtbench.flags import CHANCE, meaning
from rtbench.index import Index
from rtbench.keys import canonical
from rtbench.plan import Plan, Point
from rtbench.rows import NOTHING, Row
from rtbench.store import Store
from rtbench.suite import Suite

SCHEMA = 1


@dataclass
class Board:
    """Rows in the order of their rank, and what a report needs to lay them out. `meta` is free text about the run for reports,
    `tally` how the run that just ended went, if one did."""

    suite: str
    rank: list[str]
    rows: list[Row]
    axes: dict[str, list[Any]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    sparsity: dict[str, str] = field(default_factory=dict)
    accuracies: list[str] = field(default_factory=list)
    show: str = "all"
    meta: dict[str, str] = field(default_factory=dict)
    tally: Any = None

    def as_json(self) -> dict[str, Any]:
        """Every row, whatever `show` says. "rank" is a name, or a list where the suite gives several."""
        rank = self.rank[0] if len(self.rank) == 1 else self.rank
        return {"schema": SCHEMA, "suite": self.suite, "rank": rank, "rows": [row.as_json() for row in self.rows]}

    def shown(self) -> list[Row]:
        """The rows that tables have: all, or only each run's last."""
        return [row for row in self.rows if row.last or self.show == "all"]

    def layout(self) -> list[tables.Column]:
        """The columns of every table of this board."""
        return tables.columns(self)

    def text(self) -> list[list[str]]:
        """The cells of every table of this board, one list per shown row."""
        return tables.cells(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of text."""
        return [column.head for column in self.layout()], self.text()

    def caption(self) -> str:
        """One sentence above or below a table: units, what ± is, the order."""
        return tables.caption(self)

    def records(self) -> list[dict[str, Any]]:
        """One flat dict per row, for data frames: a probe's mean, then its .sd, .n, .low, .high (95 %) and .values."""
        return _records(self)

    def protocol(self) -> list[dict[str, str]]:
        """How each probe column was measured: attack, norm, eps, split, samples."""
        return tables.protocol(self)

    def legend(self) -> dict[str, str]:
        """What each flag on the board means."""
        return {flag: meaning(flag) for row in self.shown() for flag in row.flags}

    def marks(self) -> dict[str, str]:
        """The letter that stands beside a number under a flag, by flag."""
        return tables.marks(self)

    def incomplete(self) -> dict[str, list[str]]:
        """The shown worst cases that lack an attack in some row, and which attacks."""
        return tables.incomplete(self)


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
    rank = config.get("rank", [])
    for i, name in enumerate(rank if isinstance(rank, list) else [rank]):
        if str(name).split(".")[0] not in known:
            raise unknown("probe", name, known, f"board.rank.{i}" if isinstance(rank, list) else "board.rank")


def make(plan: Plan, store: Store, index: Index, meta: dict[str, str] | None = None) -> Board:
    """The board of a plan from what is stored now; nothing runs. UserError if the suite's [board] names what it does not have."""
    suite = plan.suite
    validate(suite)
    keys = [key for point in plan.points for key in point.probes.values()]
    found, verdicts = index.rows(keys), worst.Verdicts(index, keys)
    accuracies = joining.accuracies(plan, found)
    blocked = joining.blocked(plan, store, index.done())
    groups: dict[str, list[Point]] = {}
    ends: dict[str, int] = {}
    for point in plan.points:
        run = canonical([point.recipe, [[axis, str(value)] for axis, value in point.cell.items()]])
        groups.setdefault(f"{run} {point.order}", []).append(point)
        ends[run] = max(ends.get(run, 0), point.order)
    rows = []
    for name, points in groups.items():
        last = points[0].order == ends[name.rpartition(" ")[0]]
        rows.append(joining.join(plan, sorted(points, key=lambda point: point.trial), found, accuracies, blocked, verdicts, last))
    rank = ranking(plan)
    worsts = {name for row in rows for name in row.probes if name.startswith(f"{worst.WORST}.")}
    return Board(
        suite=suite.name, rank=rank, rows=sorted(rows, key=lambda row: order(row, rank)), axes=_axes(suite),
        columns=_columns(plan, rows), sparsity=_sparsity(plan), accuracies=sorted(accuracies | worsts),
        show=suite.board.get("show", "all"), meta=meta or {},
    )  # fmt: skip


def order(row: Row, rank: list[str]) -> tuple[bool, int, float]:
    """Sorts rows: best first by the first rank probe they have, then those without any, chance level last."""
    for place, name in enumerate(rank):
        if name in row.probes and (mean := row.probes[name].mean) is not None:
            return CHANCE in row.flags, place, -mean
    return CHANCE in row.flags, len(rank), 0.0


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
    attacked = [probe for probe in alone if probe in parts and joining.attack_of(parts[probe])[0]]
    return attacked[-1:] or alone[:1]


def _parts(plan: Plan) -> dict[str, dict[str, Any]]:
    """The resolved part of each probe, in the first cell that has it."""
    parts: dict[str, dict[str, Any]] = {}
    for point in plan.points:
        for probe, key in point.probes.items():
            parts.setdefault(probe, plan.stages[key].part)
    return parts


def _sparsity(plan: Plan) -> dict[str, str]:
    """Probes that tell how sparse the network is, and whether they count what is there ("density") or what is not ("sparsity")."""
    words = ("density", "sparsity")
    parts = _parts(plan)
    named = ((probe, word) for probe in plan.suite.probes if probe in parts for word in (probe, parts[probe]["use"]))
    return {probe: word for probe, word in named if word in words}


def _axes(suite: Suite) -> dict[str, list[Any]]:
    """The columns left of the numbers, "recipe" among them, with their values: first those that the suite orders."""
    values: dict[str, list[Any]] = {"recipe": list(suite.recipes), **suite.axes}
    names = suite.board.get("rows", [])
    first = [] if "recipe" in names else ["recipe"]
    return {name: values[name] for name in dict.fromkeys([*first, *names, *values]) if name in values}


def _columns(plan: Plan, rows: list[Row]) -> list[str]:
    """The suite's columns; or every probe's own number, sparsity first, all numbers of a probe that has no own, and worst cases.

    A probe with one stage per source has one number per source.
    """
    sparsity, planned = list(_sparsity(plan)), _parts(plan)
    there = list(dict.fromkeys(name for row in rows for name in row.probes if ".layer." not in name))
    worsts = [name for name in there if name.startswith(f"{worst.WORST}.")]
    if plan.suite.board.get("columns"):
        wanted = plan.suite.board["columns"]
        named = [worsts if name == worst.WORST else [name] if name in worsts else _named(name, planned) for name in wanted]
        return [name for names in named for name in names]
    chosen = []
    for probe in sorted(planned, key=lambda name: (name not in sparsity, list(plan.suite.probes).index(name.split(".")[0]))):
        parts = [name for name in there if name.startswith(f"{probe}.")]
        chosen += [probe] if probe in there or not parts else parts
    return chosen + worsts


def _named(name: str, planned: Iterable[str]) -> list[str]:
    """The columns that a name in `[board] columns` means: itself, or one per source of a probe that has no number of its own."""
    if name in planned or "." in name:
        return [name] if name.split(".")[0] in {probe.split(".")[0] for probe in planned} else []
    return [probe for probe in planned if probe.startswith(f"{name}.")]


def _records(board: Board) -> list[dict[str, Any]]:
    """Flat rows, all with the same names; an axis called like something else is "axis.NAME". Per-layer numbers are left out."""
    names = list(dict.fromkeys(name for row in board.rows for name in row.probes if ".layer." not in name))
    taken = {"rank", "recipe", "step", "round", "trials", "flags", "status", *names}
    axes = {axis: f"axis.{axis}" if axis in taken else axis for axis in board.axes if any(axis in row.cell for row in board.rows)}
    found = []
    for row, rank in zip(board.rows, tables.positions(board.rows, board.rank), strict=True):
        flat: dict[str, Any] = {"rank": rank, "recipe": row.recipe}
        flat |= {flat_name: row.cell.get(axis) for axis, flat_name in axes.items()}
        flat |= {"step": row.step, "round": row.round, "status": row.status, "trials": row.trials, "flags": list(row.flags)}
        for name in names:
            measured = row.probes.get(name, NOTHING)
            mean, sd, n, values, interval, *_ = measured
            low, high = interval or (None, None)
            flat |= {name: mean, f"{name}.sd": sd, f"{name}.n": n, f"{name}.low": low, f"{name}.high": high, f"{name}.values": values}
            for word in ("flags", "missing"):
                if any(getattr(other.probes.get(name, NOTHING), word) for other in board.rows):
                    flat[f"{name}.{word}"] = getattr(measured, word)
            if any(name in other.published for other in board.rows):
                flat[f"{name}.published"] = row.published.get(name, {}).get("value")
        found.append(flat)
    return found
