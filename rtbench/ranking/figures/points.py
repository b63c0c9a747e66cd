"""Numbers for the states of a figure: means over trials with their bands, curves of training, histograms, rows of a matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from rtbench.planning.plan import Plan
from rtbench.ranking.figures.declared import Declared
from rtbench.ranking.figures.shapes import Point
from rtbench.ranking.figures.states import State, value, value_text
from rtbench.ranking.rows import Measured
from rtbench.statistics import spread, student
from rtbench.storage.index import Index


def band(kind: str, mean: float, sd: float | None, n: int) -> tuple[float | None, float | None]:
    """Low and high: one standard deviation, or the 95 % t-interval of the mean; None where there is no telling."""
    if kind == "none" or sd is None:
        return None, None
    half = student(sd, n) if kind == "interval" else sd
    return mean - half, mean + half


def measured(state: State, name: str) -> Measured | None:
    """A number of a state, once it has a mean."""
    found = state.row.probes.get(name) if state.row else None
    return found if found is not None and found.mean is not None else None


def known(state: State, name: str) -> bool:
    """Whether a number was measured in any trial, were it that there is none."""
    return state.row is not None and name in state.row.probes


def plain(figure: Declared, states: list[State], y: str, ticks: list[str]) -> list[Point]:
    """A point per state that has its numbers, from left to right. A later state with the same measured x takes the earlier one's place."""
    found: dict[float, Point] = {}
    for state in states:
        across, up = _across(figure, state, ticks), measured(state, y)
        if across is not None and up is not None:
            x, left, right = across
            low, high = band(figure.band, up.mean or 0.0, up.sd, up.n)
            found[x if figure.kind != "scatter" else len(found)] = Point(x, up.mean or 0.0, low, high, up.n, left, right)
    return list(found.values()) if figure.kind == "scatter" else [found[x] for x in sorted(found)]


def level(figure: Declared, state: State, y: str) -> list[Point]:
    """One number, whatever x."""
    up = measured(state, y)
    if up is None or up.mean is None:
        return []
    low, high = band(figure.band, up.mean, up.sd, up.n)
    return [Point(0.0, up.mean, low, high, up.n)]


def _across(figure: Declared, state: State, ticks: list[str]) -> tuple[float, float | None, float | None] | None:
    """Where a state stands from left to right, and the band of that."""
    if not figure.measured:
        told = value(state, figure.x)
        if told is None:
            return None
        return (float(ticks.index(value_text(state, figure.x))), None, None) if ticks else (float(told), None, None)
    found = measured(state, figure.x)
    if found is None or found.mean is None:
        return None
    x = 1 - found.mean if figure.flip else found.mean
    left, right = band(figure.band, x, found.sd, found.n) if figure.kind == "scatter" and found.sd else (None, None)
    return (round(x, 4) if figure.kept and figure.kind == "curve" else x), left, right


def training(figure: Declared, plan: Plan, index: Index, states: list[State], y: str) -> list[Point]:
    """The records of the stages that trained a state, over its trials, by step; or by epoch, where these or their length are told."""
    found: dict[float, list[float]] = {}
    for state in states:
        for key in state.keys:
            records = index.curve(key)
            told = {step: number for step, name, number in records if name == "epoch"} if figure.x == "epoch" else {}
            length = per_epoch(plan.stages[key].part["knobs"], records) if figure.x == "epoch" else 1.0
            for step, name, number in records:
                x = told.get(step, step / length if length and not told else None)
                if name == y and number is not None and x is not None:
                    found.setdefault(x, []).append(number)
    points = []
    for x, values in sorted(found.items()):
        mean, sd, n = spread(values)
        low, high = band(figure.band, mean or 0.0, sd, n)
        points.append(Point(x, mean or 0.0, low, high, n))
    return points


def per_epoch(knobs: dict[str, Any], records: Iterable[tuple[int, str, Any]]) -> float | None:
    """Steps per epoch of a whole training that logs its loss after every epoch and its last step; None where that is not told.

    From its epochs and its last step, or else from its first loss, where a second one shows that a whole epoch came before it.
    """
    steps = [step for step, name, _ in records if name == "loss"]
    if not steps:
        return None
    if knobs.get("epochs"):
        return steps[-1] / float(knobs["epochs"])
    return float(steps[0]) if len(steps) > 1 else None


def histogram(figure: Declared, state: State, y: str, edges: list[float]) -> list[Point]:
    """Densities at the middle of each bin: its share of all weights, those outside of the bins too, divided by its width."""
    points = []
    for number, (left, right) in enumerate(itertools.pairwise(edges)):
        found = measured(state, f"{y}.bin.{number}")
        if found is not None and found.mean is not None:
            width = right - left
            low, high = band(figure.band, found.mean / width, None if found.sd is None else found.sd / width, found.n)
            points.append(Point((left + right) / 2, found.mean / width, None if low is None else max(0.0, low), high, found.n))
    return points


def cells(state: State, y: str, part: str, ticks: list[str]) -> list[Point]:
    """A row of a matrix: one number per source that was measured. part: "" or what of each is shown, such as ".chance"."""
    found = ((x, measured(state, f"{y}.{source}{part}")) for x, source in enumerate(ticks))
    return [Point(float(x), number.mean, None, None, number.n) for x, number in found if number is not None and number.mean is not None]


def front(points: list[Point], x: int, y: int) -> list[Point]:
    """The points that no other beats: none is at least as good in both and better in one. x, y: 1 where more is better, -1 where less.

    By x; of equal ones all are in.
    """

    def beaten(one: Point) -> bool:
        ahead = ((x * (other.x - one.x), y * (other.y - one.y)) for other in points)
        return any(across >= 0 and up >= 0 and (across or up) for across, up in ahead)

    return sorted((point for point in points if not beaten(point)), key=lambda point: (point.x, point.y))
