"""Whether a figure can be drawn of this plan: no point is two runs, and something is measured that it shows."""

from __future__ import annotations

from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.planning.plan import Plan
from rtbench.ranking.figures.declared import Declared
from rtbench.ranking.figures.states import Group, State, grouped, has, of_plan, records, value, value_text
from rtbench.ranking.worst import WORST, names


def check_plan(plan: Plan, figures: list[Declared], whole: bool) -> None:
    """UserError for a figure whose states cannot be told apart, or, where the `whole` suite is planned, that nothing could ever be in."""
    states = of_plan(plan)
    for figure in figures:
        for y in figure.y:
            if y.split(".")[0] == WORST and y != WORST and y not in names(plan):
                raise unknown("column", y, names(plan), f"{figure.place}.y")
        found = grouped(plan, figure, states)
        for group in found:
            _check_line(figure, group)
        for i, y in enumerate(figure.y):
            if whole and not any(group.y == y and group.states for group in found):
                raise _nothing(plan, figure, states, y, f"{figure.place}.y.{i}" if len(figure.y) > 1 else f"{figure.place}.y")


def _check_line(figure: Declared, group: Group) -> None:
    """UserError where a line, or a point of it, would be several runs."""
    if figure.kind == "scatter":
        return  # every state is a dot of its own
    places: dict[str, State] = {}
    for state in group.states:
        point = "" if figure.measured or figure.kind in ("density", "matrix") or figure.training else value_text(state, figure.x)
        other = places.setdefault(point, state)
        axes = {**state.cell, **other.cell}
        loose = [word for word in ("recipe", *axes, "round", "step") if value_text(state, word) != value_text(other, word)]
        if figure.measured:  # amounts move along the line, and so do rounds
            loose = [word for word in loose if word == "recipe" or (word in axes and not _amounts(value(state, word), value(other, word)))]
        if loose:
            told = " and ".join(f'"{word}"' for word in loose)
            raise UserError(
                f"{figure.place}: {told} {'differ' if len(loose) > 1 else 'differs'} among the runs of one "
                f"{'point' if point else 'line'}; name it in lines or panels, or choose a value in where"
            )


def _amounts(one: Any, other: Any) -> bool:
    """Whether both are numbers, or one run has no such axis, as a dense one has no share that is removed."""
    return None in (one, other) or all(isinstance(found, int | float) and not isinstance(found, bool) for found in (one, other))


def _nothing(plan: Plan, figure: Declared, states: list[State], y: str, place: str) -> UserError:
    """Why no state has this number."""
    if figure.training:
        known = [name for state in states for name in records(plan, state) or []]
        if known and y.split(".")[0] not in known:
            return unknown("record of training", y, known, place)
    if any(has(plan, figure, state, y) for state in states):
        more = f' beside "{figure.x}"' if figure.measured else ""
        return UserError(f'{place}: "{y}" is never measured{more} where `where` admits it, so the figure would stay empty')
    return UserError(f'{place}: "{y}" is never measured, so the figure would stay empty')
