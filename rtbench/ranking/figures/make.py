"""From a suite's figures, a board's rows and the index to figures with numbers. What is not measured yet is not there."""

from __future__ import annotations

from dataclasses import replace

from rtbench.errors import UserError
from rtbench.planning.plan import Plan
from rtbench.ranking.figures import points as numbers
from rtbench.ranking.figures.checks import check_plan
from rtbench.ranking.figures.declared import EACH, Declared, read
from rtbench.ranking.figures.shapes import Figure, Line, Panel, Point
from rtbench.ranking.figures.sheet import Sheet
from rtbench.ranking.figures.states import Group, State, grouped, of_rows, value, varying
from rtbench.ranking.rows import Row
from rtbench.ranking.wording import label
from rtbench.ranking.worst import WORST, meant
from rtbench.storage.index import Index

BANDS = {"sd": "± 1 standard deviation", "interval": "95 % t-intervals of the mean"}
WHISKERS = ("bar", "scatter")


def declared(plan: Plan, whole: bool = True) -> list[Declared]:
    """The figures of a plan's suite, all names checked. UserError with the dotted path of what cannot be shown.

    whole: the plan has all that the suite has, so a figure that nothing is in is a mistake.
    """
    figures = []
    for one in read(plan.suite):
        y = tuple(meant(plan, name, f"{one.place}.y") if name == WORST and not one.training else name for name in one.y)
        x = meant(plan, one.x, f"{one.place}.x") if one.measured else one.x
        one = replace(one, y=tuple(_sourced(plan, one, name) for name in y), x=x)
        figures.append(replace(one, panels=(EACH, *one.panels)) if len(y) > 1 and EACH not in (*one.lines, *one.panels) else one)
    check_plan(plan, figures, whole)
    return figures


def _sourced(plan: Plan, one: Declared, name: str) -> str:
    """A probe of one source has its numbers under both names: "survivors" is "survivors.origin"."""
    planned = dict.fromkeys(probe for point in plan.points for probe in point.probes)
    sources = [probe for probe in planned if probe.startswith(f"{name}.")]
    if one.kind == "matrix":
        if planned and not any(probe.startswith(f"{name.split('.')[0]}.") for probe in planned):
            raise UserError(f'{one.place}.y: "{name}" has no sources; a matrix needs a probe with `from` that is measured for each')
        return name
    if one.training or name in planned or not sources:
        return name
    if len(sources) > 1:
        raise UserError(f'{one.place}.y: "{name}" could be {", ".join(sources)}; name one')
    return sources[0]


def make(plan: Plan, rows: list[Row], index: Index, accuracies: list[str]) -> list[Figure]:
    """The figures of a board, in the order of the suite."""
    states = of_rows(rows, plan) if plan.suite.figures else []
    return [_filled(Sheet(plan, index, one, set(accuracies), grouped(plan, one, states))) for one in declared(plan, whole=False)]


def _filled(sheet: Sheet) -> Figure:
    one = sheet.one
    styles = {text: number for number, text in enumerate(dict.fromkeys(group.label for group in sheet.groups))}
    panels: dict[tuple[str, str], list[Group]] = {}
    for group in sheet.groups:
        panels.setdefault((group.panel, "" if EACH in one.lines else group.y), []).append(group)
    drawn = [panel for groups in panels.values() if (panel := _panel(sheet, groups, styles)).lines]
    x, y = sheet.x(), " and ".join(label(name) for name in one.y)
    title = one.title or (y if one.kind in ("density", "matrix") else f"{y} against {x.name}")
    words = one.lines
    if one.kind == "matrix" and not words:
        words = tuple(varying(sheet.plan.suite, [state for group in sheet.groups for state in group.states], list(one.panels)))
    head = ", ".join(word for word in words if word != EACH)
    return Figure(one.name, one.kind, title, x, drawn, head, _note(sheet, drawn))


def _panel(sheet: Sheet, groups: list[Group], styles: dict[str, int]) -> Panel:
    found = [(group, *_points(sheet, group)) for group in groups]
    lines = [Line(group.label, styles[group.label], tuple(points), level) for group, points, level in found if points]
    panel = Panel(groups[0].panel, sheet.y(list(dict.fromkeys(group.y for group in groups))), tuple(lines))
    return _fronted(sheet, panel, groups[0].y) if sheet.one.kind == "scatter" else panel


def _points(sheet: Sheet, group: Group) -> tuple[list[Point], bool]:
    """The points of a line, and whether it is level: a control that has no x of its own, or only one."""
    one, states = sheet.one, group.states
    if one.training:
        found = numbers.training(one, sheet.plan, sheet.index, states, group.y)
        sheet.count(1, bool(found))
    elif one.kind == "density":
        found = [point for state in states for point in numbers.histogram(one, state, group.y, _edges(sheet, state, group.y))]
        sheet.count(1, bool(found))
    elif one.kind == "matrix":
        name, dot, part = group.y.partition(".")
        found = [point for state in states for point in numbers.cells(state, name, dot + part, sheet.ticks)]
        planned = [probe for state in states for probe in state.probes if probe.startswith(f"{name}.")]
        sheet.count(len(planned), sum(numbers.known(state, f"{probe}{dot}{part}") for state in states for probe in state.probes
                                      if probe in planned))  # fmt: skip
    else:
        lacking = not one.measured and value(states[0], one.x) is None
        level = group.control and ((one.kind == "curve" and len(states) == 1) or (one.kind in ("curve", "bar") and lacking))
        found = numbers.level(one, states[-1], group.y) if level else numbers.plain(one, states, group.y, sheet.ticks)
        wanted = states[-1:] if level else states
        sheet.count(len(wanted), sum(numbers.known(state, group.y) for state in wanted))
        return found, level
    return found, False


def _edges(sheet: Sheet, state: State, y: str) -> list[float]:
    keys = state.row.keys.get(y, []) if state.row else []
    return next((sheet.edges[key] for key in keys if key in sheet.edges), [])


def _fronted(sheet: Sheet, panel: Panel, y: str) -> Panel:
    """The panel with its front, whose points are marked; as it is where nobody knows which way is better."""
    x_sign, y_sign = sheet.sign(sheet.one.x), sheet.sign(y)
    if not x_sign or not y_sign:
        return panel
    best = numbers.front([point for line in panel.lines for point in line.points], x_sign, y_sign)
    lines = tuple(replace(line, points=tuple(replace(p, best=p in best) for p in line.points)) for line in panel.lines)
    return replace(panel, lines=lines, front=tuple(replace(point, best=True) for point in best))


def _note(sheet: Sheet, panels: list[Panel]) -> str:
    """What bands are, what is left out, and what is still missing."""
    one, points = sheet.one, [point for panel in panels for line in panel.lines for point in line.points]
    said = [] if points else ["Nothing measured yet."]
    trials = sorted({point.n for point in points})
    if any(point.low is not None for point in points):
        many = str(trials[0]) if len(trials) == 1 else f"{trials[0]} to {trials[-1]}"
        said.append(f"{'Whiskers' if one.kind in WHISKERS else 'Bands'}: {BANDS[one.band]}, {many} trials.")
    elif trials:
        said.append("One trial." if trials == [1] else f"Means over {trials[-1]} trials.")
    if any(panel.front for panel in panels):
        said.append("Ringed and joined: the Pareto front, where no other network is as good in both and better in one.")
    said += _left_out(sheet) if one.kind == "density" else []
    if points and sheet.got < sheet.asked:
        what = "lines" if one.training or one.kind == "density" else "numbers"
        said.append(f"{sheet.asked - sheet.got} of {sheet.asked} {what} not measured yet.")
    return " ".join(said)


def _left_out(sheet: Sheet) -> list[str]:
    """How much of the weights a histogram cannot show: exact zeros and those outside of its bins."""
    found = []
    for word, told in (("zero", "are exactly 0 and left out"), ("outside", "lie outside of the bins")):
        there = [numbers.measured(state, f"{group.y}.{word}") for group in sheet.groups for state in group.states]
        most = max((each.mean or 0.0 for each in there if each), default=0.0)
        found += [f"Up to {100 * most:.1f} % of the weights {told}."] if most >= 0.0005 else []
    return found
