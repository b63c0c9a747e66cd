"""Notices parts whose code was edited, without a new version, since the stages were stored that a plan takes from the store."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from rtbench.commands.study import Study
from rtbench.engine.code import digests, used
from rtbench.errors import unknown
from rtbench.plugins import OWN, Catalogue
from rtbench.running.schedule import missing
from rtbench.storage.accepted import accept, accepted
from rtbench.storage.index import Index
from rtbench.storage.store import Store


class Drift(NamedTuple):
    """A part, "pruner magnitude", how many stored stages another code of it made, and the digests of these codes and of the present one."""

    part: str
    stages: int
    codes: frozenset[str]

    def __str__(self) -> str:
        kind, name = self.part.split()
        stages = f"{self.stages} stored stage{'s' if self.stages != 1 else ''}"
        return f'{kind} "{name}" changed since {stages}; give it a new version, or accept with "rtbench run SUITE --accept {name}"'


def check(study: Study, store: str | Path, accept_: Iterable[str] = ()) -> list[Drift]:
    """What changed since the stages that a run would take from the store, but for what is accepted.

    accept_: names of parts whose changes are accepted now and from now on; UserError for one that the plan does not use.
    """
    wanted = set(accept_)
    names = [part.split()[1] for part in used(study.plan.stages.values(), study.catalogue)] if wanted else []
    for name in wanted - set(names):
        raise unknown("part", name, names, "--accept")
    if not (Path(store) / "schema.json").is_file():
        return []
    opened = Store(store, create=False)
    index = Index(opened)
    try:
        found = drifted(study.catalogue, opened, index, study.plan.stages.keys() - missing(study.plan, opened, index.done()))
    finally:
        index.close()
    for drift in found:
        if drift.part.split()[1] in wanted:
            accept(opened, drift.part, drift.codes)
    return [drift for drift in found if drift.part.split()[1] not in wanted]


def drifted(found: Catalogue, store: Store, index: Index, taken: Collection[str]) -> list[Drift]:
    """What changed since these stored stages. A release of rtbench answers for its own parts: they are compared within one release."""
    said = index.origins("parts", taken)
    parts = {f"{kind} {name}": part for (kind, name), part in found.parts.items()}
    now = digests({name: parts[name] for facts, _ in said for name in facts if name in parts})
    known = accepted(store)
    counts, codes = dict[str, int](), dict[str, set[str]]()
    for facts, stages in said:
        for name, fact in facts.items():
            if name not in now or fact["code"] in (None, now[name]) or {fact["code"], now[name]} <= set(known.get(name, [])):
                continue
            if fact["plugin"] != OWN or fact["version"] == parts[name].owner_version:
                counts[name] = counts.get(name, 0) + stages
                codes.setdefault(name, {now[name]}).add(fact["code"])
    return [Drift(name, counts[name], frozenset(codes[name])) for name in sorted(counts)]
