"""Stages of probes that borrow: what a probe kept per sample on one run is an input of the measurement of another.

`declare(sources="craft")` names the probe that makes what is borrowed. It runs once per lending state and is shared by all borrowers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rtbench.errors import UserError
from rtbench.parts.kinds import asks_for, knobs, lender, version
from rtbench.planning.runs import Move, Probing, Run, Source, State
from rtbench.planning.sources import Directory, Found, everyone, label, lenders, origin
from rtbench.planning.stages import stage_of
from rtbench.plugins import Catalogue

if TYPE_CHECKING:
    from rtbench.planning.plan import Plan


@dataclass
class Borrowing:
    """Adds such stages to a plan. runs: all of the suite. chosen: those that are planned. made: keys of moves by run, trial, number."""

    plan: Plan
    catalogue: Catalogue
    runs: Directory
    chosen: list[Run]
    made: dict[tuple[int, int], dict[int, str]] = field(default_factory=dict)
    _known: dict[tuple[int, str], list[tuple[str, str, Found]]] = field(default_factory=dict)
    """The sources of a probe on a run, the same at every trial."""
    _lent: dict[tuple[int, int, int, int], str] = field(default_factory=dict)
    """Keys of stages that make what is borrowed, by the borrower's part, run, move and trial."""

    def keys(self, run: Run, trial: int) -> dict[int, str]:
        """The keys of the moves of a run that are planned so far."""
        return self.made.setdefault((id(run), trial), {})

    def reach(self, run: Run, trial: int, number: int) -> str:
        """The key of a move, which is planned with all that it needs."""
        made = self.keys(run, trial)
        needed = {number} - made.keys()
        for at in range(number, -1, -1) if needed else ():
            if at in needed:
                needed |= {parent for parent, _ in run.moves[at].inputs.values()} - made.keys()
        for at in sorted(needed):
            made[at] = self.plan.add(stage_of(run.moves[at], made, trial))
        return made[number]

    def measure(self, run: Run, state: State, trial: int) -> Iterator[tuple[str, str]]:
        """Name and key of every stage that measures a state and borrows; one that has a single source is called "probe.source"."""
        for name, (probing, part) in state.borrowing.items():
            words = asks_for(self.catalogue.get("probe", part["use"]).function)
            own = {"own": self._probe(lent(self.catalogue, part, True), run, state.move, trial, {})} if "own" in words else {}
            found = {source: self._one(run, source, place, states, trial) for source, place, states in self._sources(probing, run, state)}
            keys = {source: self._lend(part, *one, trial) for source, one in found.items()}
            if "source" in words:
                for source, key in keys.items():
                    yield f"{name}.{source}", self._probe(part, run, state.move, trial, {"source": key, **own})
            else:
                measured = self.reach(run, trial, state.move)
                others = [source for source, (other, at) in found.items() if self.reach(other, trial, at) != measured]
                given = {f"source.{source}": keys[source] for source in others}
                yield name, self._probe(part, run, state.move, trial, {**given, **own})

    def _sources(self, probing: Probing, run: Run, state: State) -> list[tuple[str, str, Found]]:
        """Name, dotted path and states of every source of a probe on a state of a run."""
        asked, place = (id(run), probing.name), f"probes.{probing.name}.from"
        if probing.sources == "origin":
            return [("origin", place, origin(run, state))]
        if asked not in self._known and probing.sources == "all":
            self._known[asked] = [(name, place, states) for name, states in everyone(self.plan.suite, run, self.chosen)]
        elif asked not in self._known:
            named = [source for source in probing.sources or () if isinstance(source, Source)]
            self._known[asked] = [(source.name, source.place, lenders(source, run, self.runs)) for source in named]
        return self._known[asked]

    def _one(self, run: Run, name: str, place: str, states: Found, trial: int) -> tuple[Run, int]:
        """The only state among these, which runs may share; it has the same data as the borrower."""
        keys = {self.reach(other, trial, number) for other, number in states}
        one = states[0]
        if len(keys) > 1:
            some = " and ".join(dict.fromkeys(label(other.recipe, other.own) for other, _ in states[:2]))
            raise UserError(f'{place}: "{name}" is {len(keys)} states, of {some} among others; name one, or list the values that are meant')
        if one[0].moves[one[1]].data != run.moves[0].data:
            raise UserError(f"{place}: {label(one[0].recipe, one[0].own)} has other data than {label(run.recipe, run.cell)}")
        return one

    def _lend(self, part: dict[str, Any], run: Run, number: int, trial: int) -> str:
        """The key of the stage that makes what `part` borrows from the state that a move left."""
        asked = (id(part), id(run), number, trial)
        if asked not in self._lent:
            self._lent[asked] = self._probe(lent(self.catalogue, part), run, number, trial, {})
        return self._lent[asked]

    def _probe(self, part: dict[str, Any], run: Run, number: int, trial: int, inputs: dict[str, str]) -> str:
        """The key of a probe on the state that a move left, with samples of others."""
        self.reach(run, trial, number)
        measured = run.moves[number]
        move = Move("probe", part, measured.data, measured.net, ("probe", part), {"weights": (number, "")}, {})
        stage = stage_of(move, self.keys(run, trial), trial)
        return self.plan.add(replace(stage, inputs={**stage.inputs, **inputs}))


def lent(catalogue: Catalogue, part: dict[str, Any], own: bool = False) -> dict[str, Any]:
    """The resolved probe that makes what `part` borrows, of others or of the measured state itself (`own`).

    It has its knobs from `part`; on others, the knob "source_NAME" takes the place of NAME where it is not None.
    """
    name = lender(catalogue.get("probe", part["use"]).function)
    function = catalogue.get("probe", str(name)).function
    given = part["knobs"]
    if missing := [knob for knob in knobs("probe", function) if knob not in given]:
        raise UserError(f'probe "{part["use"]}" borrows from "{name}" and lacks its knob "{missing[0]}"')
    others = {} if own else {knob: given[f"source_{knob}"] for knob in given if given.get(f"source_{knob}") is not None}
    return {"use": name, "version": version(function), "knobs": {knob: others.get(knob, given[knob]) for knob in knobs("probe", function)}}
