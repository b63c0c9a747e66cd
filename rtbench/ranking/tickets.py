"""Verdicts on lottery tickets: winning, boosting, neither or undecided, from the numbers of a ticket's row and those of its controls.

Winning: over the trials that both have, the ticket's mean accuracy is at least dense's minus one standard deviation of dense's (how this
harness reads the "matches" of Frankle & Carbin 2019, arXiv:1803.03635). Boosting: it is as accurate as the winning ticket in the same
sense, in fewer epochs by an exact two-sided sign-flip test paired by trial, corrected over the tickets of the board (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rtbench.parts.flags import CHANCE
from rtbench.planning.controls import CONTROLS, RIVAL, Claim, Terms, place_of
from rtbench.planning.plan import Plan
from rtbench.ranking.rows import NOTHING, Row
from rtbench.statistics import holm, sign_flip, spread
from rtbench.storage.index import Row as Found

ALPHA = 0.05
Numbers = Sequence[float | None]
"""One per trial; None where there is none, infinity where a ticket never got so far."""


class Match(NamedTuple):
    """How one row's accuracy stands to another's over the n trials of both: whether it matches, and the mean of the paired differences.

    edge: one standard deviation of the other's, which it may be lower. spread: that of the differences.
    """

    holds: bool | None
    gap: float | None
    edge: float | None
    spread: float | None
    n: int


class Race(NamedTuple):
    """Epochs against the winning ticket's. ahead: their differences sum to less than 0. p, n: of the test."""

    match: Match
    ahead: bool
    p: float
    n: int


def matches(ticket: Numbers, other: Numbers) -> Match:
    """Whether a mean is at least another's minus one of the other's standard deviations; nobody knows with less than two trials.

    Nothing matches another whose mean is not above its own standard deviation: a network that is always wrong would.
    """
    pairs = [(mine, its) for mine, its in zip(ticket, other, strict=True) if mine is not None and its is not None]
    gap, deviation, n = spread(mine - its for mine, its in pairs)
    level, edge, _ = spread(its for _, its in pairs)
    holds = None if gap is None or level is None or edge is None else gap >= -edge - 1e-12 and level > edge
    return Match(holds, gap, edge, deviation, n)


def lead(ticket: Numbers, other: Numbers) -> list[float]:
    """Differences over the trials of both. One that only one of them never finished outweighs all finite ones together."""
    pairs = [(mine, its) for mine, its in zip(ticket, other, strict=True) if mine is not None and its is not None]
    finite = [mine - its for mine, its in pairs if math.isfinite(mine) and math.isfinite(its)]
    worst = 1 + math.fsum(map(abs, finite))
    return [mine - its if math.isfinite(mine - its) else worst * ((mine > its) - (mine < its)) for mine, its in pairs]


def race(match: Match, ticket: Numbers, other: Numbers) -> Race:
    differences = lead(ticket, other)
    return Race(match, math.fsum(differences) < 0, sign_flip(differences), len(differences))


def boosting(races: Sequence[Race]) -> list[bool | None]:
    """Which of all tickets of a board are significantly ahead of the winning ticket; None where even the best result could not tell."""
    adjusted = holm([one.p for one in races])
    found = list[bool | None]()
    for i, one in enumerate(races):
        if one.match.holds is False:
            found.append(False)
        elif one.match.holds is None or one.n < 2:
            found.append(None)
        elif not one.ahead or adjusted[i] <= ALPHA:
            found.append(one.ahead)
        else:
            best = holm([2 / 2**one.n if j == i else other.p for j, other in enumerate(races)])[i]
            found.append(None if best > ALPHA else False)
    return found


def judge(plan: Plan, rows: Sequence[Row], found: Mapping[str, Found], shares: set[str]) -> None:
    """Sets `ticket` of the rows that [tickets] judge and of their controls. shares: names of numbers that are shares of samples."""
    by = {place_of(row.recipe, row.cell, row.order): row for row in rows}
    several = len({claim.terms.measure for claim in plan.claims}) > 1
    sides = [(claim, by[claim.place()], {name: by[one] for name, one in claim.places().items()})
             for claim in plan.claims]  # fmt: skip
    raced = [i for i, (_, _, controls) in enumerate(sides) if RIVAL in controls]
    races = [_race(sides[i][0].terms, sides[i][1], sides[i][2][RIVAL], found) for i in raced]
    adjusted, ahead = holm([one.p for one in races]), boosting(races)
    tests = {i: (races[k], adjusted[k], ahead[k]) for k, i in enumerate(raced)}
    for i, (claim, row, controls) in enumerate(sides):
        measure = claim.terms.measure
        gaps = {name: matches(_values(row, measure), _values(other, measure)) for name, other in controls.items()}
        row.ticket = _verdict(claim, gaps, tests.get(i), measure in shares, _at_chance(row, measure, found))
        row.ticket["test"] = f"{measure}: {row.ticket['test']}" if several else row.ticket["test"]
    for _, _, controls in sides:
        for name, row in controls.items():
            row.ticket = row.ticket or {"verdict": None, "control": name, "test": f"{name} control"}


def _values(row: Row, name: str) -> Numbers:
    return row.probes.get(name, NOTHING).values or [None] * row.trials


def _at_chance(row: Row, measure: str, found: Mapping[str, Found]) -> int:
    """In how many trials the network was not above chance level where it was measured: nothing that it matches says that it learned."""
    stages = [trial.split(" + ") for trial in row.behind(measure)]
    return sum(any(key in found and CHANCE in found[key].flags for key in keys) for keys in stages)


def _race(terms: Terms, row: Row, rival: Row, found: Mapping[str, Found]) -> Race:
    match = matches(_values(row, terms.measure), _values(rival, terms.measure))
    return race(match, _epochs(row, terms.epochs, found), _epochs(rival, terms.epochs, found))


def _epochs(row: Row, name: str, found: Mapping[str, Found]) -> Numbers:
    """A probe that ran and gave no number but None says that the ticket never got there."""
    probe = next(probe for probe in row.keys if name == probe or name.startswith(f"{probe}."))
    sub = name[len(probe) + 1 :]
    records = [found[key].values if key in found else {} for key in row.keys[probe]]
    return [math.inf if sub in values and values[sub] is None else values.get(sub) for values in records]


def _verdict(
    claim: Claim, gaps: dict[str, Match], test: tuple[Race, float, bool | None] | None, share: bool, chance: int
) -> dict[str, Any]:
    """The strongest true statement, unless a stronger one is open; with its test in words and all that it rests on."""
    lost = [name for name in CONTROLS if not gaps[name].n]
    dense, raced = gaps["dense"], test[0] if test else None
    winning = None if lost or (chance and dense.holds) else dense.holds
    boosts = None if (lost and test) or (chance and test and test[2]) else test[2] if test else False
    verdict = "boosting" if boosts else "undecided" if boosts is None or winning is None else "winning" if winning else "neither"
    told, n = _matched(dense, share), dense.n
    if test and boosts is not False:
        told, n = _raced(test[0], test[1], winning), test[0].n
    if chance and (dense.holds or (test and test[2])):
        told = f"{CHANCE} in {chance} of {n} trials"
    told = " and ".join(f"no {name} control yet" for name in lost) or told
    return {
        "verdict": verdict, "measure": claim.terms.measure, "test": told, "n": n, "winning": winning,
        "boosting": boosts if test else None, "p": raced.p if raced else None, "holm": test[1] if test else None,
        "gaps": {name: gap._asdict() for name, gap in gaps.items()}, "differs": claim.differs,
        "controls": {name: {"recipe": run.recipe, "cell": run.cell, "step": run.states[order].step, "round": run.states[order].round}
                     for name, (run, order) in claim.controls.items()},
    }  # fmt: skip


def _matched(match: Match, share: bool) -> str:
    """ "-0.32 ≥ -0.51, n = 3": what the ticket has more than dense, and minus dense's standard deviation."""
    if match.gap is None or match.edge is None:
        return f"n = {match.n}"
    if not match.holds and match.gap >= -match.edge:
        return f"dense is at 0 within its deviation, n = {match.n}"
    gap, edge = (f"{100 * x:.2f}" if share else f"{x:.3g}" for x in (match.gap, -match.edge))
    return f"{gap} {'≥' if match.holds else '<'} {edge}, n = {match.n}"


def _raced(raced: Race, adjusted: float, winning: bool | None) -> str:
    first = {True: "winning; ", False: "below dense; ", None: ""}[winning]
    if not raced.n:
        return f"{first}no epochs, n = 0"
    corrected = f" (Holm {adjusted:.3g})" if adjusted != raced.p else ""
    return f"{first}sign-flip p = {raced.p:.3g}{corrected}, n = {raced.n}"


def text(ticket: dict[str, Any] | None) -> str:
    """What the column says."""
    if not ticket:
        return ""
    return f"{ticket['verdict']} ({ticket['test']})" if ticket["verdict"] else str(ticket["test"])


def notes(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """What the words on the board mean, as "word: meaning", and which controls had another schedule."""
    said = {row.ticket["verdict"] for row in rows if row.ticket}
    found = [
        "winning: the mean is at least dense's minus one standard deviation of dense's over the trials, of "
        + " or, as the verdict says, ".join(dict.fromkeys(claim.terms.measure for claim in plan.claims))
        + "; beside it stand these numbers (the ticket's minus dense's ≥ minus that deviation, in percentage points where it is a share)"
    ]
    for terms in {claim.terms.epochs: claim.terms for claim in plan.claims if RIVAL in claim.controls}.values():
        found.append(
            f"boosting: {terms.measure} matches the winning ticket's in the same sense, in fewer {terms.epochs}: exact two-sided "
            "sign-flip test paired by trial, 5 % over the tickets of the board (Holm); who never gets there counts as worse than all else"
        )
    if "neither" in said:
        found.append("neither: lower than that" + (", and not boosting" if any(RIVAL in claim.controls for claim in plan.claims) else ""))
    if "undecided" in said:
        found.append(
            "undecided: a stronger statement is open, because so few trials cannot tell, a control is not there yet, or the ticket "
            "is not above chance level, where a match says nothing"
        )
    differs = list(dict.fromkeys(knob for claim in plan.claims for knob in claim.differs))
    return [*found, *([f"schedules differ from the tickets': {'; '.join(differs)}"] if differs else [])]
