"""Equal budgets shown: a ticket's accuracy relative to dense beside the epochs, passes and seconds that led to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rtbench.planning.controls import place_of
from rtbench.planning.plan import Plan
from rtbench.ranking.rows import NOTHING, Measured, Row
from rtbench.statistics import spread

EPOCHS, PASSES, SECONDS = "planned epochs", "passes/dense", "seconds/dense"
"""Names with a blank or a slash are never those of probes. Training may stop earlier than planned; passes and seconds are measured."""


VERSUS = " vs dense"


def relative(measure: str) -> str:
    """The name of the paired difference to dense."""
    return measure + VERSUS


def compare(plan: Plan, rows: Sequence[Row]) -> None:
    """Adds to the rows of tickets and their controls the numbers above, those that can be told."""
    by = {place_of(row.recipe, row.cell, row.order): row for row in rows}
    cost = spent(plan)
    for claim in plan.claims:
        places = claim.places()
        dense, compared = by[places.pop("dense")], [by[claim.place()], *(by[place] for place in places.values())]
        for row in compared:
            for measure in measures(plan):
                _add(row, relative(measure), row.probes.get(measure), dense.probes.get(measure), lambda mine, its: mine - its)
            if cost:
                _add(row, PASSES, row.probes.get(cost), dense.probes.get(cost), _ratio)
                _add(row, SECONDS, row.probes.get(f"{cost}.seconds"), dense.probes.get(f"{cost}.seconds"), _ratio)
        for row in (*compared, dense):
            if (planned := epochs(plan, row.state[0])) is not None:
                row.probes[EPOCHS] = NOTHING._replace(mean=planned, n=row.trials, values=[planned] * row.trials)


def _add(row: Row, name: str, mine: Measured | None, its: Measured | None, made: Callable[[float, float], float | None]) -> None:
    if mine is None or its is None:
        return
    values = [None if a is None or b is None else made(a, b) for a, b in zip(mine.values, its.values, strict=True)]
    mean, sd, n = spread(values)
    row.probes[name] = NOTHING._replace(mean=mean, sd=sd, n=n, values=values)


def _ratio(mine: float, its: float) -> float | None:
    return mine / its if its else None


def spent(plan: Plan) -> str | None:
    """The probe of the suite that is a "cost"."""
    names = (name for point in plan.points for name, key in point.probes.items() if plan.stages[key].part["use"] == "cost")
    return next(names, None)


def epochs(plan: Plan, key: str) -> float | None:
    """Epochs of all trainings that led to a state, as planned; None where one is not counted in epochs."""
    lengths = [stage.part["knobs"].get("epochs") for stage in plan.trainings(key)]
    return None if None in lengths else float(sum(lengths))


def columns(plan: Plan, rows: Sequence[Row], chosen: list[str]) -> list[str]:
    """The board's columns with differences right of the accuracy they are of, or last; the budgets follow the last of them."""
    cost = spent(plan)
    budgets, found = [EPOCHS, *([cost, PASSES, SECONDS] if cost else [])], list(chosen)
    for measure in measures(plan):
        place = found.index(measure) + 1 if measure in found else len(found)
        found.insert(place, relative(measure))
    found[place + 1 : place + 1] = [name for name in budgets if name not in chosen]
    return [name for name in found if name in chosen or any(name in row.probes for row in rows)]


def measures(plan: Plan) -> list[str]:
    """The accuracies that the suite's [tickets] judge."""
    return list(dict.fromkeys(claim.terms.measure for claim in plan.claims))
