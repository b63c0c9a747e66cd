"""One panel of a figure on matplotlib axes, by the figure's kind. Figures are plain data, see `rtbench.ranking.figures`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from rtbench.builtin.reports.canvas import LEVEL, Look, bare, hatch, kept_axis, log_ticks, style
from rtbench.builtin.reports.notes import ball

FEW = 12
"""Lines of more points have no marker on each."""
SHADE = 0.55
"""The darkest cell of a matrix, as a share of its colour; text is legible on it."""


class Frame(NamedTuple):
    """What all panels of a figure share. boxes: low and high of each y axis by its name. ends: smallest and largest x."""

    figure: Any
    look: Look
    boxes: dict[str, tuple[float, float]]
    ends: tuple[float, float]


def frame(figure: Any, look: Look) -> Frame:
    """The frame of a figure that has at least one panel."""
    boxes: dict[str, tuple[float, float]] = {}
    for panel in figure.panels:
        edges = [edge for line in panel.lines for p in line.points for edge in (p.y, p.low, p.high) if edge is not None]
        low, high = boxes.get(panel.y.name, (edges[0], edges[0]))
        boxes[panel.y.name] = min(low, *edges), max(high, *edges)
    across = [p.x for panel in figure.panels for line in panel.lines if not line.level for p in line.points] or [0.0, 1.0]
    return Frame(figure, look, boxes, (min(across), max(across)))


def scale(axis: Any) -> float:
    return 100.0 if axis.unit == "%" else 1.0


def turned(figure: Any) -> int:
    """Degrees by which the categories of the x axis are turned so as not to meet."""
    longest = max(map(len, figure.x.ticks), default=0)
    if figure.kind == "matrix":
        return 40 if longest > 5 else 0
    return 30 if len(figure.x.ticks) * longest > 44 else 0


def hanging(figure: Any, points: float) -> float:
    """Inches that turned categories take below the axis, in letters of this size."""
    return 0.6 * points / 72 * max(map(len, figure.x.ticks), default=0) * math.sin(math.radians(turned(figure)))


def titled(axis: Any) -> str:
    """An axis in words: pgd ℓ∞ 0.3 (%)."""
    threat = ball({"norm": axis.norm, "eps": axis.eps}) if axis.norm else ""
    return " ".join(text for text in (axis.name, threat, f"({axis.unit})" if axis.unit else "") if text)


def paint(axes: Any, panel: Any, frame: Frame) -> None:
    """Draws a panel, its axes named and scaled like those of its neighbours."""
    kind = frame.figure.kind
    if kind == "matrix":
        _matrix(axes, panel, frame)
        return
    for line in panel.lines:
        draw = _line if line.level else {"bar": _bars, "scatter": _dots}.get(kind, _line)
        draw(axes, line, panel, frame)
    if panel.front:
        axes.plot(
            [scale(frame.figure.x) * p.x for p in panel.front], [scale(panel.y) * p.y for p in panel.front], color=frame.look.ink,
            linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1.5,
        )  # fmt: skip
    bare(axes, frame.look)
    _across(axes, frame)
    _up(axes, panel, frame)


def _line(axes: Any, line: Any, panel: Any, frame: Frame) -> None:
    colour, marker, dash = style(line.style, frame.look)
    across, up = scale(frame.figure.x), scale(panel.y)
    name = f"label{line.style}-line"
    if line.level:
        point = line.points[0]
        axes.axhline(up * point.y, color=colour, linestyle=LEVEL, linewidth=1.4, gid=name)
        places = [0.02 + 0.03 * (line.style % 6), 0.83 + 0.03 * (line.style % 6)]  # shares of the width, where levels close by differ
        axes.plot(places, [up * point.y] * 2, color=colour, marker=marker, linestyle="", markersize=4, gid=f"label{line.style}-ends",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        if point.low is not None:
            axes.axhspan(up * point.low, up * point.high, color=colour, alpha=0.12, linewidth=0, gid=f"label{line.style}-band")
        return
    steps = frame.figure.kind == "density"
    x, y = [across * p.x for p in line.points], [up * p.y for p in line.points]
    every = None if len(x) <= FEW else (line.style % 6 * len(x) // 60, max(1, len(x) // 7))
    axes.plot(x, y, color=colour, marker=marker, linestyle=dash, linewidth=1.4, markersize=4, markevery=every, gid=name,
              drawstyle="steps-mid" if steps else "default")  # fmt: skip
    banded = [p for p in line.points if p.low is not None]
    if banded:
        axes.fill_between(
            [across * p.x for p in banded], [up * p.low for p in banded], [up * p.high for p in banded], color=colour, alpha=0.18,
            linewidth=0, step="mid" if steps else None, gid=f"label{line.style}-band",
        )  # fmt: skip


def _bars(axes: Any, line: Any, panel: Any, frame: Frame) -> None:
    colour, up = style(line.style, frame.look)[0], scale(panel.y)
    styles = [other.style for other in panel.lines if not other.level]
    width = 0.82 / len(styles)
    shift = (styles.index(line.style) - (len(styles) - 1) / 2) * width
    x, y = [p.x + shift for p in line.points], [up * p.y for p in line.points]
    axes.bar(x, y, 0.92 * width, color=colour, edgecolor=frame.look.card, hatch=hatch(line.style), linewidth=0)
    there = [(place, p) for place, p in zip(x, line.points, strict=True) if p.low is not None]
    if there:
        reach = [[up * (p.y - p.low) for _, p in there], [up * (p.high - p.y) for _, p in there]]
        axes.errorbar([place for place, _ in there], [up * p.y for _, p in there], yerr=reach, fmt="none", ecolor=frame.look.ink,
                      elinewidth=1, capsize=2)  # fmt: skip


def _dots(axes: Any, line: Any, panel: Any, frame: Frame) -> None:
    colour, marker, _ = style(line.style, frame.look)
    across, up = scale(frame.figure.x), scale(panel.y)
    x, y = [across * p.x for p in line.points], [up * p.y for p in line.points]
    for place, height, p in zip(x, y, line.points, strict=True):
        if p.low is not None:
            axes.plot([place, place], [up * p.low, up * p.high], color=colour, linewidth=1, alpha=0.6)
        if p.left is not None:
            axes.plot([across * p.left, across * p.right], [height, height], color=colour, linewidth=1, alpha=0.6)
    axes.plot(x, y, color=colour, marker=marker, linestyle="", markersize=4.5, gid=f"label{line.style}-line")
    best = [(place, height) for place, height, p in zip(x, y, line.points, strict=True) if p.best]
    if best:
        axes.plot(*zip(*best, strict=True), marker="o", linestyle="", markersize=9, fillstyle="none", color=frame.look.ink,
                  markeredgewidth=0.9)  # fmt: skip


def _matrix(axes: Any, panel: Any, frame: Frame) -> None:
    """Rows from top to bottom, the numbers in the cells; a dash where none is measured."""
    from matplotlib.patches import Rectangle

    look, up = frame.look, scale(panel.y)
    low, high = frame.boxes[panel.y.name]
    ticks, rows = frame.figure.x.ticks, [line.label for line in panel.lines]
    known = {(row, round(p.x)): p.y for row, line in enumerate(panel.lines) for p in line.points}
    digits = ".1f" if up == 100 else ".2f"
    for row in range(len(rows)):
        for column in range(len(ticks)):
            y = known.get((row, column))
            share = 0.0 if y is None else SHADE * ((y - low) / (high - low) if high > low else 0.5) + 0.04
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=look.series[0], alpha=share, linewidth=0))
            axes.text(column, row, "–" if y is None else f"{up * y:{digits}}", ha="center", va="center", color=look.ink)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _categories(axes, frame)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(frame.figure.x.name)
    axes.set_ylabel(frame.figure.head)
    axes.tick_params(colors=look.ink, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _categories(axes: Any, frame: Frame) -> None:
    ticks, angle = frame.figure.x.ticks, turned(frame.figure)
    axes.set_xticks(range(len(ticks)), ticks, rotation=angle, ha="right" if angle else "center", rotation_mode="anchor")


def _across(axes: Any, frame: Frame) -> None:
    x, (low, high) = frame.figure.x, frame.ends
    if x.ticks:
        _categories(axes, frame)
        axes.set_xlim(-0.6, len(x.ticks) - 0.4)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(titled(x))
        return
    if x.falling and low > 0 and not x.log:
        kept_axis(axes, low)
        return
    up = scale(x)
    there = {up * p.x for panel in frame.figure.panels for line in panel.lines if not line.level for p in line.points}
    if x.log:
        axes.set_xscale("log")
        places = sorted(place for place in there if place > 0) or [1.0]
        axes.set_xlim(*((places[0] / 1.15, places[-1] * 1.15)[:: -1 if x.falling else 1]))
        if len(places) <= FEW:
            axes.set_xticks(places[:: math.ceil(len(places) / 6)])
            axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        room = 0.04 * up * (high - low) or 0.5
        axes.set_xlim(up * low - room, up * high + room)
        axes.xaxis.get_major_locator().set_params(integer=all(place.is_integer() for place in there))
    axes.set_xlabel(titled(x))


def _up(axes: Any, panel: Any, frame: Frame) -> None:
    axes.set_ylabel(titled(panel.y))
    low, high = (scale(panel.y) * edge for edge in frame.boxes[panel.y.name])
    if panel.y.log:
        axes.set_yscale("log")
        if high > 0:
            edges = axes.get_ylim()
            axes.set_yticks(log_ticks(*edges))
            axes.set_ylim(*edges)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        return
    if frame.figure.kind == "bar" or (frame.figure.kind == "density"):
        axes.set_ylim(min(0.0, 1.06 * low), 1.06 * high or 1.0)
        return
    room = 0.06 * (high - low) or 1.0
    axes.set_ylim(max(low - room, 0.0) if low >= 0 else low - room, high + room)
