"""What a figure is once it has numbers: panels of lines of points. Plain data, so that any report can draw it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Axis:
    """name: what is shown, as the board calls it. unit: "%" where the numbers are shares, to be shown times 100.

    norm, eps: the threat under which it was measured, eps as the field writes it. ticks: categories; then points stand at 0, 1, 2, ...
    log: logarithmic. falling: drawn from the largest number to the smallest.
    """

    name: str
    unit: str = ""
    norm: str = ""
    eps: str = ""
    ticks: tuple[str, ...] = ()
    log: bool = False
    falling: bool = False


@dataclass(frozen=True)
class Point:
    """x, y: means over n trials. low, high: the band of y, left, right: that of x; None where there is none. best: on the Pareto front."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    left: float | None = None
    right: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """Points of one label. style: the number of the label in its figure. level: one value whatever x, such as a dense control."""

    label: str
    style: int
    points: tuple[Point, ...]
    level: bool = False


@dataclass(frozen=True)
class Panel:
    """front: the Pareto front of a scatter, by x. Of a matrix each line is a row, and each point a cell in column x."""

    title: str
    y: Axis
    lines: tuple[Line, ...]
    front: tuple[Point, ...] = ()


@dataclass
class Figure:
    """head: what the labels of the lines are values of. note: what bands are, and what is missing. No panels: nothing measured yet."""

    name: str
    kind: str
    title: str
    x: Axis
    panels: list[Panel] = field(default_factory=list)
    head: str = ""
    note: str = ""

    def labels(self) -> list[str]:
        """The labels of all lines; the place of each is its style."""
        found = {line.style: line.label for panel in self.panels for line in panel.lines}
        return [found[number] for number in sorted(found)]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
