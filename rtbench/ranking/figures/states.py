"""Which states of a plan a figure shows, and which panel and line each belongs to. Decided by the plan, whatever is measured yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from rtbench.keys import canonical
from rtbench.planning.places import allowed
from rtbench.planning.plan import Plan
from rtbench.planning.suite import Suite
from rtbench.ranking.figures.declared import EACH, Declared
from rtbench.ranking.rows import Row
from rtbench.ranking.wording import words
from rtbench.ranking.worst import groups


class State(NamedTuple):
    """A state of a run, as far as figures ask for it. probes: the planned ones. keys: its stage by trial. row: its numbers."""

    recipe: str
    cell: dict[str, Any]
    step: int | str
    round: int
    order: int
    probes: tuple[str, ...]
    keys: tuple[str, ...]
    row: Row | None = None


@dataclass
class Group:
    """The states of one line in one panel, for one number. control: it lacks an axis that tells the other lines apart."""

    panel: str
    label: str
    y: str
    states: list[State]
    control: bool = False


def of_plan(plan: Plan) -> list[State]:
    """The states of the first trial; the others have the same."""
    return [
        State(p.recipe, p.cell, p.step, p.round, p.order, _with_worst(plan, p.probes), (p.key,))
        for p in plan.points
        if p.trial == plan.points[0].trial
    ]


def of_rows(rows: Iterable[Row], plan: Plan) -> list[State]:
    """The states of a board, in the order of the plan."""
    places = {(p.recipe, canonical(p.cell), p.order): number for number, p in reversed(list(enumerate(plan.points)))}
    found = [
        State(r.recipe, r.cell, r.step, r.round, r.order, _with_worst(plan, {name: keys[0] for name, keys in r.keys.items()}),
              tuple(r.state), r)
        for r in rows
    ]  # fmt: skip
    return sorted(found, key=lambda state: places[state.recipe, canonical(state.cell), state.order])


def _with_worst(plan: Plan, probes: dict[str, str]) -> tuple[str, ...]:
    return (*probes, *groups({name: plan.stages[key].part for name, key in probes.items()}))


def has(plan: Plan, figure: Declared, state: State, name: str) -> bool:
    """Whether this number is planned on a state: by a probe of that name, with a part or a source of its own, or by its training."""
    if figure.training:
        known = records(plan, state)
        return known is not None and (not known or name.split(".")[0] in known)
    name = name.split(".")[0] if figure.kind == "matrix" else name
    return any(name == probe or name.startswith(f"{probe}.") or probe.startswith(f"{name}.") for probe in state.probes)


def records(plan: Plan, state: State) -> list[str] | None:
    """What the training that left a state logs; [] where its trainer does not say, None where it was not training."""
    stage = plan.stages[state.keys[0]]
    if stage.verb != "train":
        return None
    probes = stage.part["knobs"].get("probes")
    return ["loss", *probes] if isinstance(probes, dict) else []


def value(state: State, word: str) -> Any:
    """Where a state stands: its recipe, round, step, or its value of an axis; None where its run has no such axis."""
    return getattr(state, word) if word in ("recipe", "round", "step") else state.cell.get(word)


def chosen(plan: Plan, figure: Declared, states: list[State], y: str) -> list[State]:
    """The states that have the number. Of each run the last one, or of each round or step where the figure tells these apart.

    Where x is measured, a run is followed through all of its states, unless a scatter is on a board that shows the last ones alone.
    """
    found: dict[tuple[Any, ...], State] = {}
    needed = [y, *([figure.x] if figure.measured else [])]
    through = figure.measured and (figure.kind != "scatter" or plan.suite.board.get("show", "all") == "all")
    apart = ("order",) if through else [word for word in ("round", "step") if word in figure.words()]
    for state in sorted(states, key=lambda state: state.order):
        where = {word: values for word, values in figure.where.items() if word in ("recipe", "round", "step") or word in state.cell}
        if allowed(where, state.recipe, {"round": state.round, "step": state.step, **state.cell}):
            at = tuple(getattr(state, word) for word in apart)
            if all(has(plan, figure, state, name) for name in needed):
                found[state.recipe, canonical(state.cell), at] = state
    places = {id(state): number for number, state in enumerate(states)}
    return sorted(found.values(), key=lambda state: places[id(state)])


def grouped(plan: Plan, figure: Declared, states: list[State]) -> list[Group]:
    """Panels and lines in the order of the suite."""
    suite = plan.suite
    found: list[Group] = []
    for y in figure.y:
        mine = chosen(plan, figure, states, y)
        lines, panels = [[word for word in words if word != EACH] for words in (figure.lines, figure.panels)]
        if figure.kind == "matrix" and not lines:
            lines = varying(suite, mine, panels)
        several = EACH in figure.lines or EACH in figure.panels or len(figure.y) > 1
        made = _groups(figure, suite, mine, lines, panels, y)
        for group in made:
            group.label = _joined(figure.lines, group.label, y) if several and EACH in figure.lines else group.label
        found += made
    return found


def _joined(lines: tuple[str, ...], label: str, y: str) -> str:
    return ", ".join(word for word in ((y, label) if lines[0] == EACH else (label, y)) if word)


def _groups(figure: Declared, suite: Suite, states: list[State], lines: list[str], panels: list[str], y: str) -> list[Group]:
    """One group for each choice of values. A state without one of these axes, or x, is a control, in every panel that agrees with it."""
    matrix = figure.kind == "matrix"
    ranks = {word: _ranks(suite, word, states) for word in (*lines, *panels)}
    needed = (*lines, *panels, *([figure.x] if figure.x in suite.axes and not figure.measured else []))
    there = [word for word in needed if any(value(state, word) is not None for state in states)]
    full = [state for state in states if all(value(state, word) is not None for word in there)] or states
    shown = _sorted({tuple(value_text(state, word) for word in panels) for state in full}, panels, ranks)
    found: dict[tuple[Any, ...], Group] = {}
    drawn: set[tuple[Any, ...]] = set()
    complete = {id(state) for state in full}
    for number, state in enumerate(states):
        mine = [value_text(state, word) for word in panels]
        control = id(state) not in complete
        named = ["recipe", *lines] if control and "recipe" not in lines and not matrix else lines
        label = ("-" if matrix else ", ").join(told for word in named if (told := _told(state, word)))
        order = tuple(ranks[word].get(value_text(state, word), -1) for word in lines)
        for panel in shown:
            if figure.kind == "scatter" and (panel, state.keys) in drawn:
                continue  # a state that several runs share is one dot
            if all(own in ("", other) for own, other in zip(mine, panel, strict=True)):
                drawn.add((panel, state.keys))
                title = ", ".join(_headed(word, told) for word, told in zip(panels, panel, strict=True))
                key = (shown.index(panel), () if matrix else (control, *order), label if not matrix else f"{number:09d}")
                found.setdefault(key, Group(title, label, y, [], control)).states.append(state)
    return [found[key] for key in sorted(found)]


def _ranks(suite: Suite, word: str, states: list[State]) -> dict[str, int]:
    """The place of each value, as text: of axes as in the suite, of rounds and steps as they come."""
    values = {"recipe": list(suite.recipes), **suite.axes}.get(word)
    values = sorted({value(state, word) for state in states}, key=str) if values is None else values
    values = sorted(values) if word == "round" else values
    return {words(each): number for number, each in enumerate(values)}


def _sorted(found: set[tuple[str, ...]], panels: list[str], ranks: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    return sorted(found, key=lambda values: tuple(ranks[word].get(told, -1) for word, told in zip(panels, values, strict=True)))


def value_text(state: State, word: str) -> str:
    """A value as the board writes it; "" where there is none."""
    found = value(state, word)
    return "" if found is None else words(found)


def _told(state: State, word: str) -> str:
    found = value_text(state, word)
    return f"{word} {found}" if found and word in ("round", "step") else found


def _headed(word: str, told: str) -> str:
    return told if word == "recipe" else f"{word} {told}"


def varying(suite: Suite, states: list[State], panels: list[str]) -> list[str]:
    """The words that tell these states apart."""
    return [word for word in ("recipe", *suite.axes) if word not in panels and len({value_text(state, word) for state in states}) > 1]
