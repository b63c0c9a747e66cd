"""The worst case over all attacks run: per threat the share of samples that withstood every one, from verdicts by sample id."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from rtbench.errors import UserError, unknown
from rtbench.planning.plan import Plan
from rtbench.storage.index import Index

WORST = "worst"
NOTE = f"{WORST}: robust against every attack run under that threat, on the samples that all of them saw"


def groups(parts: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Columns of one row, such as "worst.linf.8/255", and the probes behind each: `accuracy` under one threat on one split, two at least.

    Other probes with an attack (curves, transfer) measure something else and stay out. parts: resolved ones by probe.
    """
    found: dict[str, list[str]] = {}
    for probe, part in parts.items():
        attack = part["knobs"].get("attack")
        given = attack.get("knobs", {}) if isinstance(attack, dict) else {}
        if part["use"] == "accuracy" and given.get("norm") and given.get("eps") is not None:
            split = part["knobs"].get("split", "test")
            name = f"{WORST}.{given['norm']}.{Fraction(str(given['eps']))}" + (f".{split}" if split != "test" else "")
            found.setdefault(name, []).append(probe)
    return {name: probes for name, probes in found.items() if len(probes) > 1}


def names(plan: Plan) -> list[str]:
    """The worst-case columns that rows of this plan can have."""
    seen = {tuple(sorted((probe, str(plan.stages[key].part)) for probe, key in point.probes.items())): point for point in plan.points}
    return list(dict.fromkeys(name for point in seen.values() for name in groups(parts_of(plan, point.probes))))


def parts_of(plan: Plan, keys: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {probe: plan.stages[key].part for probe, key in keys.items()}


def meant(plan: Plan, name: str, where: str) -> str:
    """The column that a suite means by `name`: "worst" is the only one there is. UserError if there are several, or no such one."""
    there = names(plan)
    if name == WORST and len(there) > 1:
        raise UserError(f'{where}: "{WORST}" could be {", ".join(there)}; name one')
    if name.startswith(f"{WORST}.") and there and name not in there:
        raise unknown("column", name, there, where)
    return there[0] if name == WORST and there else name


class Verdicts:
    """Per-sample verdicts of many stages, each read once."""

    def __init__(self, index: Index, keys: Iterable[str]) -> None:
        self.index, self.bits = index, index.bits(set(keys))
        self._places = functools.cache(self._common)

    def __contains__(self, key: str) -> bool:
        return key in self.bits

    def together(self, keys: Sequence[str]) -> tuple[int, int]:
        """How many samples are robust in all of these stages, and of how many that all of them saw."""
        import numpy as np

        columns = self.robust(keys)
        return int(np.bitwise_and.reduce(columns).sum()), len(columns[0])

    def robust(self, keys: Sequence[str]) -> list[Any]:
        """For each of these stages, uint8 (n,): which of the n samples that all of them saw are robust, in one order."""
        import numpy as np

        places = self._places(tuple(self.bits[key].ids for key in keys))
        return [np.unpackbits(np.frombuffer(self.bits[key].robust, np.uint8))[rows] for key, rows in zip(keys, places, strict=True)]

    def _common(self, digests: tuple[str, ...]) -> list[Any]:
        """For each set of ids where in it the samples of all stand, in one order."""
        import numpy as np

        sets = {digest: np.frombuffer(self.index.ids(digest), "<i8") for digest in digests}
        shared = functools.reduce(np.intersect1d, sets.values())
        found = {}
        for digest, ids in sets.items():
            order = np.argsort(ids, kind="stable")
            found[digest] = order[np.searchsorted(ids, shared, sorter=order)]
        return [found[digest] for digest in digests]
