"""The board: a plan's points joined with the records of their probes, one row per state, its trials together. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rtbench.keys import canonical
from rtbench.parts.flags import CHANCE, meaning
from rtbench.planning.plan import Plan, Point
from rtbench.planning.suite import Suite
from rtbench.ranking import budgets, figures, headings, shares, tickets, ties, worst
from rtbench.ranking import rows as joining
from rtbench.ranking import table as tables
from rtbench.ranking.rows import NOTHING, Row
from rtbench.storage.index import Index
from rtbench.storage.index import Row as Found
from rtbench.storage.store import Store

SCHEMA = 1


@dataclass
class Board:
    """Rows in the order of their rank, and what a report needs to lay them out. `meta` is free text about the run for reports,
    `tally` how the run that just ended went, if one did, `notes` what every table has to say besides its columns, `plugins` what made the
    numbers and all stages behind them, each with its version. without, words, label: columns that no table has, a caption of the suite's
    own and a name for LaTeX to refer to it, as the suite's [board] has them. origin: which suite file it is of, without saying where.
    """

    suite: str
    rank: list[str]
    rows: list[Row]
    axes: dict[str, list[Any]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    sparsity: dict[str, str] = field(default_factory=dict)
    accuracies: list[str] = field(default_factory=list)
    show: str = "all"
    without: set[str] = field(default_factory=set)
    words: str = ""
    label: str = ""
    origin: str = ""
    meta: dict[str, str] = field(default_factory=dict)
    about: str = ""
    tally: Any = None
    notes: list[str] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)
    figures: list[figures.Figure] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Every row, whatever `show` says. "rank" is a name, or a list where the suite gives several."""
        rank = self.rank[0] if len(self.rank) == 1 else self.rank
        drawn = {"figures": [figure.as_json() for figure in self.figures]} if self.figures else {}
        rows = [row.as_json() for row in self.rows]
        return {"schema": SCHEMA, "suite": self.suite, "rank": rank, "plugins": self.plugins, "rows": rows, **drawn}

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
        """One flat dict per row, whatever `show` says, for data frames; `last` is whether it is its run's last.

        Of a probe there is the mean, then its .sd, .n, .low, .high (95 %) and .values, and .keys, the stages behind them, one per trial; of
        a worst case these are joined by " + ". state.keys are those of the networks.
        """
        return _records(self)

    def protocol(self) -> list[dict[str, str]]:
        """How each probe column was measured: attack, norm, eps, split, samples."""
        return tables.protocol(self)

    def legend(self) -> dict[str, str]:
        """What each flag on the board means."""
        return {flag: meaning(flag) for row in self.shown() for flag in row.flags}

    def marks(self) -> dict[str, str]:
        """The letter that stands beside a number under a flag, by flag."""
        return tables.marks(self.legend())

    def incomplete(self) -> dict[str, list[str]]:
        """The shown worst cases that lack an attack in some row, and which attacks."""
        return tables.incomplete(self)


def make(plan: Plan, store: Store, index: Index, meta: dict[str, str] | None = None) -> Board:
    """The board of a plan from what is stored now; nothing runs. UserError if the suite's [board] names what it does not have."""
    suite = plan.suite
    headings.validate(suite)
    keys = [key for point in plan.points for key in point.probes.values()]
    found, verdicts = index.rows(keys), worst.Verdicts(index, keys)
    accuracies = shares.accuracies(plan, found)
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
    rank = headings.ranking(plan)
    rows.sort(key=lambda row: order(row, rank))
    ties.group(rows, rank, verdicts)
    worsts = {name for row in rows for name in row.probes if name.startswith(f"{worst.WORST}.")}
    board = Board(
        suite=suite.name, rank=rank, rows=rows, axes=headings.axes(suite),
        columns=headings.columns(plan, rows), sparsity=headings.sparsity(plan), accuracies=sorted(accuracies | worsts),
        show=suite.board.get("show", "all"), without=set(suite.board.get("without", [])), words=suite.board.get("caption", ""),
        label=suite.board.get("label", ""), origin=suite.origin(), meta=meta or {}, about=suite.about, notes=_scaled(suite),
        plugins=_plugins(plan, index),
    )  # fmt: skip
    if plan.claims:
        _judge(board, plan, found)
    board.figures = figures.make(plan, rows, index, board.accuracies)
    return board


def _plugins(plan: Plan, index: Index) -> list[str]:
    """Every plugin that a stored stage of the plan used, with its version; several where stages differ."""
    used = {f"{name} {number}".strip() for facts, _ in index.origins("plugins", plan.stages) for name, number in facts.items()}
    return sorted(used)


def _scaled(suite: Suite) -> list[str]:
    """That a profile measured something else than the suite's words and published numbers are about, as "word: meaning"."""
    parts = list(dict.fromkeys(path.split(".")[1] for path in suite.changed if path.startswith("parts.")))
    if not parts:
        return []
    told = "; the published numbers are about the suite as it stands" if suite.published else ""
    return [f"profile {suite.profile}: its own settings of {', '.join(parts)}{told}"]


def _judge(board: Board, plan: Plan, found: dict[str, Found]) -> None:
    """Verdicts on lottery tickets, and the numbers that go with them."""
    tickets.judge(plan, board.rows, found, set(board.accuracies))
    budgets.compare(plan, board.rows)
    board.columns = budgets.columns(plan, board.rows, board.columns)
    board.accuracies += [budgets.relative(measure) for measure in budgets.measures(plan) if measure in board.accuracies]
    board.notes += tickets.notes(plan, board.rows)


def order(row: Row, rank: list[str]) -> tuple[bool, int, float]:
    """Sorts rows: best first by the first rank probe they have, then those without any, chance level last."""
    for place, name in enumerate(rank):
        if name in row.probes and (mean := row.probes[name].mean) is not None:
            return CHANCE in row.flags, place, -mean
    return CHANCE in row.flags, len(rank), 0.0


def _records(board: Board) -> list[dict[str, Any]]:
    """Flat rows, all with the same names; an axis called like something else is "axis.NAME". Numbers per layer or bin are left out."""
    names = list(dict.fromkeys(name for row in board.rows for name in row.probes if not set(name.split(".")) & {"layer", "bin"}))
    judged = [f"ticket{word}" for word in ("", ".test", ".p", ".n")] if any(row.ticket for row in board.rows) else []
    taken = {"rank", "recipe", "step", "round", "last", "trials", "flags", "status", *names, *judged}
    axes = {axis: f"axis.{axis}" if axis in taken else axis for axis in board.axes if any(axis in row.cell for row in board.rows)}
    found = []
    for row, rank in zip(board.rows, tables.positions(board.rows, board.rank), strict=True):
        flat: dict[str, Any] = {"rank": rank, "recipe": row.recipe}
        flat |= {flat_name: row.cell.get(axis) for axis, flat_name in axes.items()}
        flat |= {"step": row.step, "round": row.round, "last": row.last, "status": row.status, "trials": row.trials}
        flat |= {"flags": list(row.flags), "state.keys": row.state}
        flat |= {name: (row.ticket or {}).get(name.partition(".")[2] or "verdict") for name in judged}
        for name in names:
            measured = row.probes.get(name, NOTHING)
            mean, sd, n, values, interval, *_ = measured
            low, high = interval or (None, None)
            if any(other.behind(name) for other in board.rows):
                flat[f"{name}.keys"] = row.behind(name)
            flat |= {name: mean, f"{name}.sd": sd, f"{name}.n": n, f"{name}.low": low, f"{name}.high": high, f"{name}.values": values}
            for word in ("flags", "missing"):
                if any(getattr(other.probes.get(name, NOTHING), word) for other in board.rows):
                    flat[f"{name}.{word}"] = getattr(measured, word)
            if any(name in other.published for other in board.rows):
                flat[f"{name}.published"] = row.published.get(name, {}).get("value")
        found.append(flat)
    return found
