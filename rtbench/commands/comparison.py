"""What a table says of two rows, paired."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from rtbench.parts.flags import meaning
from rtbench.planning.suite import text
from rtbench.ranking.pairs import Pair
from rtbench.ranking.rows import Measured, Row
from rtbench.ranking.table import Column, marked, marks
from rtbench.ranking.wording import NONE, compact, label, percent

HEADS = ("column", "A", "B", "A - B", "95 % interval", "trials", "samples", "p", "only A", "only B")


@dataclass
class Comparison:
    """What two rows of a board both have. Report parts that write tables take it as they take a board."""

    suite: str
    one: Row
    other: Row
    pairs: list[Pair]
    accuracies: list[str]
    notes: list[str] = field(default_factory=list)
    plugins: list[str] = field(default_factory=list)
    words: str = ""
    label: str = ""

    def as_json(self) -> dict[str, Any]:
        rows = {"one": place(self.one), "other": place(self.other)}
        return {"suite": self.suite, **rows, "columns": [self._as_dict(pair) for pair in self.pairs], "notes": self.notes}

    def _as_dict(self, pair: Pair) -> dict[str, Any]:
        one, other = self._measured(pair)
        return {**pair._asdict(), "flags_one": one.flags, "flags_other": other.flags}

    def _measured(self, pair: Pair) -> tuple[Measured, Measured]:
        return self.one.probes[pair.column], self.other.probes[pair.column]

    def records(self) -> list[dict[str, Any]]:
        """One flat dict per column, for data frames."""
        found = []
        for each in self.pairs:
            low, high = each.interval or (None, None)
            flat = self._as_dict(each)
            del flat["interval"]
            found.append({**flat, "low": low, "high": high})
        return found

    def layout(self) -> list[Column]:
        return [Column("probe", head, head, head != "column", 9) for head in HEADS]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of text."""
        letters = self.marks()
        rows = [_cells(each, each.column in self.accuracies) for each in self.pairs]
        for row, each in zip(rows, self.pairs, strict=True):
            row[1:3] = [cell + marked(measured, letters) for cell, measured in zip(row[1:3], self._measured(each), strict=True)]
        return list(HEADS), rows

    def caption(self) -> str:
        a, b = place(self.one), place(self.other)
        both = {word: value for word, value in a.items() if word in b and b[word] == value}
        told = [f"{name} is {_named(there, both)}" for name, there in (("A", a), ("B", b))]
        shared = _named(both, {"step": 0, "round": 0})
        return "; ".join([f"{self.suite}: {told[0]}", told[1], *([f"both are {shared}"] if shared else []), "accuracies in percent"])

    def protocol(self) -> list[dict[str, str]]:
        return []

    def shown(self) -> list[Row]:
        return []

    def legend(self) -> dict[str, str]:
        """What each flag of these numbers means."""
        return {flag: meaning(flag) for each in self.pairs for measured in self._measured(each) for flag in measured.flags}

    def marks(self) -> dict[str, str]:
        """The letter that stands beside a number under a flag, by flag."""
        return marks(self.legend())

    def incomplete(self) -> dict[str, list[str]]:
        return {}


def _cells(pair: Pair, share: bool) -> list[str]:
    show = percent if share else compact
    interval = f"{_signed(show, pair.interval[0])} to {_signed(show, pair.interval[1])}" if pair.interval else NONE
    rest = [NONE if value is None else str(value) for value in (pair.samples, pair.only_one, pair.only_other)]
    p = NONE if pair.p is None else f"{pair.p:.2g}"
    return [
        label(pair.column), show(pair.one), show(pair.other), _signed(show, pair.difference), interval, str(pair.trials),
        rest[0], p, *rest[1:],
    ]  # fmt: skip


def _signed(show: Any, value: float) -> str:
    shown = str(show(value))
    return shown if shown.startswith("-") or not float(f"{value:.3g}") else f"+{shown}"


def place(row: Row) -> dict[str, Any]:
    """Where a row stands, as a selection names it."""
    return {"recipe": row.recipe, **row.cell, "step": row.step, "round": row.round}


def _named(there: dict[str, Any], without: Container[str]) -> str:
    return ", ".join(f"{word} {text(value)}" for word, value in there.items() if word not in without)
