"""Sparsity against robustness: one panel per leading axis, one line per group of the axes that do not set sparsity. SVG for a page.

Drawn where the suite declares no figures of its own, see `rtbench.builtin.reports.gallery`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, NamedTuple

from rtbench.builtin.reports.canvas import LINES, PAGE, bare, kept_axis, settings, style, svg, themed

PANELS = 12
DENSE = 0.999

Key = tuple[tuple[str, int], ...]
"""Axes and the numbers of their values."""


class Line(NamedTuple):
    """points: (share of weights kept, mean, sd) from dense to sparse. head: the axes that the label gives values of."""

    panel: str
    head: str
    label: str
    points: list[tuple[float, float, float]]


def lines(board: Any) -> tuple[str, list[Line]]:
    """The probe on the vertical axis, the rank probe that most rows have, and its lines; none without a measured sparsity."""
    x = next((name for name in board.sparsity if any(mean(row, name) is not None for row in board.rows)), None)
    measured = {name: sum(mean(row, name) is not None for row in board.rows) for name in board.rank}
    y = max(board.rank, key=lambda name: measured[name], default="")
    if x is None or not measured.get(y):
        return y, []
    dense = {id(row): value for row in board.rows if (value := mean(row, x)) is not None and mean(row, y) is not None}
    rows = [row for row in board.rows if id(row) in dense]
    kept = dense if board.sparsity[x] == "density" else {row: 1 - value for row, value in dense.items()}
    setting = [axis for axis in board.axes if _sets_sparsity(axis, rows, kept)]
    groups: dict[Key, dict[float, Any]] = {}
    # Of several states equally sparse the last of its run is what the recipe arrives at.
    for row in sorted(rows, key=lambda row: row.order):
        place = {"recipe": row.recipe, **row.cell}
        key = tuple((axis, board.axes[axis].index(place[axis])) for axis in board.axes if axis in place and axis not in setting)
        groups.setdefault(key, {})[round(kept[id(row)], 4)] = row
    _share_controls(groups)
    found = {
        key: [(kept[id(row)], row.probes[y].mean, row.probes[y].sd or 0.0) for _, row in sorted(group.items(), reverse=True)]
        for key, group in groups.items()
    }
    return y, _named(found, board.axes)


def mean(row: Any, name: str) -> float | None:
    value: float | None = row.probes[name].mean if name in row.probes else None
    return value


def _sets_sparsity(axis: str, rows: list[Any], kept: dict[int, float]) -> bool:
    """Whether the axis is a number, and networks that differ in nothing else differ in their density."""
    seen: dict[str, float] = {}
    for row in rows:
        value = row.cell.get(axis)
        if row.last and isinstance(value, int | float) and not isinstance(value, bool):
            rest = str((row.recipe, [(name, str(other)) for name, other in row.cell.items() if name != axis]))
            if abs(seen.setdefault(rest, kept[id(row)]) - kept[id(row)]) > 0.01 * kept[id(row)]:
                return True
    return False


def _share_controls(groups: dict[Key, dict[float, Any]]) -> None:
    """A group that is dense throughout becomes the first point of every sparse group that agrees with it on all its axes."""
    dense = [key for key, group in groups.items() if min(group) > DENSE]
    for key in dense:
        place = {entry for entry in key if entry[0] != "recipe"}
        users = [other for other in groups if other not in dense and place <= set(other)]
        for other in users:
            if max(groups[other]) <= DENSE:
                groups[other].update(groups[key])
        if users:
            del groups[key]


def _named(groups: dict[Key, list[tuple[float, float, float]]], axes: dict[str, list[Any]]) -> list[Line]:
    """Groups in the order of their axes, split into panels by as few leading axes as leave at most LINES lines in each."""
    varying = [axis for axis in axes if len({dict(key).get(axis) for key in groups}) > 1]
    leading = 0
    while leading < len(varying) and max(Counter(_values(key, varying[:leading]) for key in groups).values()) > LINES:
        leading += 1
    found = []
    for key in sorted(groups, key=lambda key: _values(key, varying)):
        shown = {axis: _word(axes[axis][i]) for axis, i in key}
        panel = ", ".join(f"{axis} {shown[axis]}" for axis in varying[:leading] if axis in shown)
        label = ", ".join(shown[axis] for axis in varying[leading:] if axis in shown)
        found.append(Line(panel, ", ".join(varying[leading:]), label, groups[key]))
    return found


def _values(key: Key, axes: list[str]) -> tuple[int, ...]:
    return tuple(dict(key).get(axis, -1) for axis in axes)


def _word(value: Any) -> str:
    return str(value.get("use", value)) if isinstance(value, dict) else str(value)


def labels(found: list[Line]) -> list[str]:
    """The different labels in order; the place of each is its number for `style`."""
    return list(dict.fromkeys(line.label for line in found))


def panels(found: list[Line], y_label: str, share: bool) -> list[tuple[str, str]]:
    """Title and SVG of each panel, all with the same axes."""
    numbers = {label: number for number, label in enumerate(labels(found))}
    scale = 100 if share else 1
    heights = [scale * edge for line in found for _, value, sd in line.points for edge in (value - sd, value + sd)]
    room = 0.06 * (max(heights) - min(heights)) or 1.0
    box = (max(min(heights) - room, 0.0) if min(heights) >= 0 else min(heights) - room, max(heights) + room)
    sparsest = min(kept for line in found for kept, _, _ in line.points)
    # A page shows one panel larger than three, and text should come out the same.
    size = {1: (6.2, 3.5), 2: (5.4, 3.4)}.get(len({line.panel for line in found}), (4.4, 3.2))
    drawn: list[tuple[str, str]] = []
    for title, members in itertools.islice(itertools.groupby(found, key=lambda line: line.panel), PANELS):
        text = _draw([(line, numbers[line.label]) for line in members], scale, box, sparsest, y_label, size)
        drawn.append((title, themed(text, f"panel{len(drawn)}-")))
    return drawn


def _draw(members: list[tuple[Line, int]], scale: float, box: tuple[float, float], sparsest: float, y_label: str, size: Any) -> str:
    from matplotlib.figure import Figure

    with settings(PAGE, 10):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for line, number in members:
            colour, marker, dash = style(number)
            kept, values, sds = zip(*line.points, strict=True)
            axes.errorbar(
                [100 * share for share in kept], [scale * value for value in values],
                yerr=[scale * sd for sd in sds] if any(sds) else None, color=colour, marker=marker, linestyle=dash, linewidth=1.6,
                markersize=5, capsize=2.5, elinewidth=1, gid=f"label{number}",
            )  # fmt: skip
        axes.set_ylim(*box)
        kept_axis(axes, sparsest)
        axes.set_ylabel(y_label)
        bare(axes, PAGE)
        return svg(figure)
