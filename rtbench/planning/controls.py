"""Tickets and their controls: which states of a suite claim to be lottery tickets, and which state of which run each is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rtbench.errors import UserError, unknown
from rtbench.keys import canonical
from rtbench.planning.places import admits, check_point, check_where, is_at, listed
from rtbench.planning.runs import Move, Run, Source, State
from rtbench.planning.sources import Directory, Found, label, lenders, read_sources
from rtbench.planning.stages import stage_of
from rtbench.planning.suite import Suite

CONTROLS, RIVAL, SAME = ("dense", "random", "fresh"), "winning", "same round"  # no step can have a name with a blank
Key = Callable[[Run, int], str]
"""The key of the stage that a move of a run becomes at the first trial."""


class Terms(NamedTuple):
    """One [tickets] table, checked. place: its dotted path. probes: those that `measure` and `epochs`, which may be "", are numbers of."""

    place: str
    measure: str
    epochs: str
    where: dict[str, Any]
    at: list[str | int]
    controls: dict[str, Source]
    probes: tuple[str, ...]
    differs: bool


class Claim(NamedTuple):
    """The state that is judged, and by name the states that it is compared with; both are a run and a place in it.

    differs: what of the last training is another in a control, in words; empty unless the suite allows it.
    """

    terms: Terms
    run: Run
    order: int
    controls: dict[str, tuple[Run, int]]
    differs: list[str]

    def place(self) -> str:
        return place_of(self.run.recipe, self.run.cell, self.order)

    def places(self) -> dict[str, str]:
        """Of its controls, by name."""
        return {name: place_of(run.recipe, run.cell, order) for name, (run, order) in self.controls.items()}


def place_of(recipe: str, cell: dict[str, Any], order: int) -> str:
    """The name of one state of one run, over all trials."""
    return canonical([recipe, [[axis, str(value)] for axis, value in cell.items()], order])


def read(suite: Suite, points: list[str]) -> list[Terms]:
    """UserError with the dotted path of what [tickets] name and the suite does not have. points: the words that `at` may say."""
    return [_terms(suite, place, table, points) for place, table in suite.tickets.items()]


def _terms(suite: Suite, place: str, table: dict[str, Any], points: list[str]) -> Terms:
    for word in ("measure", "epochs"):
        if word in table and table[word].split(".")[0] not in suite.probes:
            raise unknown("probe", table[word], suite.probes, f"{place}.{word}")
    if ("epochs" in table) != (RIVAL in table):
        raise UserError(f"{place}.{RIVAL if 'epochs' in table else 'epochs'}: is missing; a boosting ticket beats `winning` in `epochs`")
    if table.get("schedule", "same") not in ("same", "differs"):
        raise unknown("choice", table["schedule"], ["same", "differs"], f"{place}.schedule")
    check_where(suite, table["where"], f"{place}.where")
    for word in listed(table.get("at", "train")):
        check_point(word, points, f"{place}.at")
    controls = {name: _source(suite, table[name], f"{place}.{name}", points) for name in (*CONTROLS, RIVAL) if name in table}
    probes = tuple(dict.fromkeys(table[word].split(".")[0] for word in ("measure", "epochs") if word in table))
    at, differs = listed(table.get("at", "train")), table.get("schedule") == "differs"
    return Terms(place, table["measure"], table.get("epochs", ""), table["where"], at, controls, probes, differs)


def _source(suite: Suite, table: dict[str, Any], place: str, points: list[str]) -> Source:
    if "as" in table:
        raise UserError(f'{place}.as: a control is called "{place.rpartition(".")[2]}"')
    found = read_sources(suite, table, [*points, SAME], place)
    if not isinstance(found, list) or len(found) != 1:
        raise UserError(f"{place}: means {len(found)} states; a control is one")
    return found[0]


def claims(tables: list[Terms], runs: list[Run], chosen: list[Run]) -> tuple[list[Claim], list[Run]]:
    """The claims of the chosen runs and of their controls; and these runs, the controls with them, in the order of all.

    UserError where nothing in the suite claims to be a ticket, or twice, or a control is missing, is no control or had another schedule.
    """
    for terms in tables:
        if not any(_is_ticket(terms, run, state, order) for run in runs for order, state in enumerate(run.states)):
            raise UserError(f'{terms.place}.where: no network that was pruned and then trained is so and measured by "{terms.probes[0]}"')
    found, key, directory = list[Claim](), _keys(), Directory(runs)
    wanted, todo = {id(run) for run in chosen}, list(chosen)
    for run in todo:  # grows: a control may be a ticket itself
        mine = list(_claims(tables, run, directory, key))
        others = {id(other): other for claim in mine for other, _ in claim.controls.values() if id(other) not in wanted}
        wanted |= others.keys()
        todo += others.values()
        found += mine
    return found, [run for run in runs if id(run) in wanted]


def _claims(tables: list[Terms], run: Run, runs: Directory, key: Key) -> Iterator[Claim]:
    """Those of one run."""
    for order, state in enumerate(run.states):
        judged = [terms for terms in tables if _is_ticket(terms, run, state, order)]
        if len(judged) > 1:
            raise UserError(f"{judged[1].place}.where: {label(run.recipe, run.cell)} is judged by {judged[0].place} already")
        for terms in judged:
            yield _claim(terms, run, order, runs, key)


def _keys() -> Key:
    made: dict[int, dict[int, str]] = {}

    def key(run: Run, number: int) -> str:
        if id(run) not in made:
            keys = made.setdefault(id(run), {})
            for at, move in enumerate(run.moves):
                keys[at] = stage_of(move, keys, 0).key
        return made[id(run)][number]

    return key


def _is_ticket(terms: Terms, run: Run, state: State, order: int) -> bool:
    if state.verb != "train" or not state.round or not _measures(state, terms.probes[0]):
        return False
    return admits(terms.where, run.recipe, run.cell) and is_at(terms.at, state, order == len(run.states) - 1, False)


def _measures(state: State, probe: str) -> bool:
    return probe in state.probes or probe in state.borrowing


def _claim(terms: Terms, run: Run, order: int, runs: Directory, key: Key) -> Claim:
    state, controls, differs = run.states[order], dict[str, tuple[Run, int]](), list[str]()
    for name, source in terms.controls.items():
        other, at = _control(source, run, state, runs, key)
        there = other.states[at]
        if key(other, there.move) == key(run, state.move):
            if name == RIVAL:
                continue
            raise UserError(f"{source.place}: {label(run.recipe, run.cell)} would be its own control")
        _check_measured(there, other, terms.probes if name == RIVAL else terms.probes[:1], source.place)
        _check_measured(state, run, terms.probes if name == RIVAL else (), f"{terms.place}.epochs")
        _check_kind(name, run.moves[state.move], other.moves[there.move], there, source.place, label(other.recipe, other.cell))
        knobs = list(_differences(run.moves[state.move].part, other.moves[there.move].part))
        if knobs and not terms.differs:
            raise UserError(
                f"{source.place}: {label(other.recipe, other.cell)} was not trained on the schedule of {label(run.recipe, run.cell)}: "
                f'{knobs[0]}; train both alike, or let {terms.place}.schedule be "differs"'
            )
        controls[name] = other, at
        differs += [f"{name}: {knob}" for knob in knobs]
    return Claim(terms, run, order, controls, differs)


def _control(source: Source, run: Run, state: State, runs: Directory, key: Key) -> tuple[Run, int]:
    """The state that a selector means for a ticket: run, and place in it."""
    found = lenders(source._replace(at=state.round) if source.at == SAME else source, run, runs)
    free = {axis for axis in run.cell if axis not in source.cell}
    near: Found = [(other, move) for other, move in found if all(other.cell[axis] is run.cell[axis] for axis in free & other.cell.keys())]
    near = near or found  # axes that only probes mention are as in the ticket where they can be
    if len({key(other, move) for other, move in near}) > 1:
        some = " and ".join(dict.fromkeys(label(other.recipe, other.own) for other, _ in near[:2]))
        raise UserError(f"{source.place}: is several states for {label(run.recipe, run.cell)}, of {some} among others; name one")
    other, move = near[0]
    return other, next(order for order, there in enumerate(other.states) if there.move == move)


def _check_measured(state: State, run: Run, probes: tuple[str, ...], place: str) -> None:
    for probe in probes:
        if not _measures(state, probe):
            raise UserError(f'{place}: "{probe}" does not measure the state {state.step} of {label(run.recipe, run.cell)}')


def _check_kind(name: str, ticket: Move, control: Move, state: State, place: str, who: str) -> None:
    """A control is trained on the same data and architecture; the dense one was never pruned, all others were."""
    if state.verb != "train":
        raise UserError(f'{place}: the state {state.step} of {who} is not left by a training; choose another with "at"')
    if (name == "dense") == bool(state.round):
        raise UserError(f"{place}: the state {state.step} of {who} was {'pruned' if state.round else 'never pruned'}")
    for what, mine, others in (("data", ticket.data, control.data), ("architecture", ticket.net, control.net)):
        if mine != others:
            raise UserError(f"{place}: {who} has another {what}")


def _differences(ticket: Any, control: Any, path: str = "") -> Iterator[str]:
    """What two resolved trainers have different, as "lr is 0.1, not 0.2"; kept snapshots change nothing."""
    if ticket == control:
        return
    if isinstance(ticket, dict) and isinstance(control, dict) and (not path or ticket.get("use") == control.get("use")):
        for word in dict.fromkeys([*ticket, *control]):
            if word not in ("snapshots", "version"):
                inner = path if word == "knobs" else f"{path}.{word}" if path else word
                yield from _differences(ticket.get(word), control.get(word), inner)
    else:
        yield f"{path} is {_short(control)}, not {_short(ticket)}"


def _short(value: Any) -> str:
    return str(value["use"]) if isinstance(value, dict) and "use" in value else canonical(value)
