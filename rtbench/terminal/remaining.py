"""How long a run still takes, from what its stages took so far. Plain numbers, no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Sort = tuple[str, ...]
"""Stages of one sort take about as long as each other; the first word is their verb."""


class Running(NamedTuple):
    """A stage that has told of itself: when first, which share of it was done then (a resumed one has more than none), and is now."""

    sort: Sort
    begun: float
    first: float
    share: float


def remaining(
    left: Mapping[Sort, int], spent: Mapping[Sort, tuple[float, int]], running: Sequence[Running], now: float, elapsed: float
) -> float | None:
    """Seconds that are left, from what stages of the same sort took, or those that run will take, at the parallelism seen so far.

    left: stages that are not finished, those that run among them. spent: seconds and number of the finished. None before anything is
    known. A sort of which nothing is known takes as long as others of its verb, or as all others, by the geometric mean: a few long
    trainings say little of a thousand short probes.
    """
    means = _means(spent, running, now)
    busy = sum(seconds for seconds, _ in spent.values()) + sum(now - run.begun for run in running)
    if not means or not busy or not elapsed:
        return None
    expected = {sort: means.get(sort) or _typical(means, sort[0]) for sort in left}
    behind = sum(max(run.share, min(1.0, (now - run.begun) / expected[run.sort])) * expected[run.sort] for run in running)
    return max(0.0, sum(n * expected[sort] for sort, n in left.items()) - behind) * min(1.0, elapsed / busy)


def _means(spent: Mapping[Sort, tuple[float, int]], running: Sequence[Running], now: float) -> dict[Sort, float]:
    """Seconds per stage of each sort that has finished ones or, failing that, running ones."""
    ends: dict[Sort, list[float]] = {}
    for run in running:
        if run.share > run.first and run.sort not in spent:
            ends.setdefault(run.sort, []).append((now - run.begun) / (run.share - run.first))
    found = {sort: sum(seconds) / len(seconds) for sort, seconds in ends.items()} | {sort: sum_ / n for sort, (sum_, n) in spent.items()}
    return {sort: mean for sort, mean in found.items() if mean > 0}


def _typical(means: Mapping[Sort, float], verb: str) -> float:
    alike = [mean for sort, mean in means.items() if sort[0] == verb] or list(means.values())
    return math.exp(math.fsum(map(math.log, alike)) / len(alike))
