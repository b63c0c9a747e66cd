"""Rows of the board: the points of one state over all trials, joined with the records of their probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from rtbench.parts.flags import INCOMPLETE
from rtbench.planning.plan import Plan, Point, allowed
from rtbench.planning.suite import Suite
from rtbench.ranking.worst import Verdicts, groups, parts_of
from rtbench.statistics import spread, wilson
from rtbench.storage.index import Row as Found
from rtbench.storage.store import Store


class Measured(NamedTuple):
    """One number of one row. values: one per trial in trial order, None where it is not there yet.

    sd: sample standard deviation over the trials (n - 1), None below two. interval: 95 %, of accuracies only (see `wilson`).
    attack, norm, eps (exact, as text), split and samples say how it was measured, None where that does not apply. flags: what was raised
    while it was measured, in any trial. missing: of a worst case, the attacks without which it is incomplete; then mean is None.
    over: the probes that a worst case is over.
    """

    mean: float | None
    sd: float | None
    n: int
    values: list[float | None]
    interval: list[float] | None
    split: str | None
    samples: int | None
    attack: str | None
    norm: str | None
    eps: str | None
    flags: list[str]
    missing: list[str]
    over: tuple[str, ...] = ()


NOTHING = Measured(None, None, 0, [], None, None, None, None, None, None, [], [])


@dataclass
class Row:
    """One state of one recipe in one cell, over all trials.

    order: its place in the run. last: nothing comes after it. done: trials that have every probe. flags: in how many trials each
    was raised. reasons: why stages are missing, by key. keys: each probe's stages by trial; state: those of the state itself.
    group: which rows it cannot be told apart from, see `ties`; None where nobody looked. ticket: the verdict on a lottery ticket, see
    `tickets`; of a control, which one it is.
    """

    recipe: str
    cell: dict[str, Any]
    step: int | str
    round: int
    order: int
    last: bool
    trials: int
    done: int
    probes: dict[str, Measured]
    flags: dict[str, int]
    published: dict[str, dict[str, Any]]
    status: str
    reasons: dict[str, str]
    keys: dict[str, list[str]]
    state: list[str]
    group: int | None = None
    ticket: dict[str, Any] | None = None

    def behind(self, name: str) -> list[str]:
        """The keys of the stages that a number comes from, one per trial; [] of one that is computed from other rows, too."""
        probe = max((probe for probe in self.keys if f"{name}.".startswith(f"{probe}.")), key=len, default=None)
        over = self.probes[name].over if name in self.probes else ()
        return self.keys[probe] if probe else [" + ".join(trial) for trial in zip(*(self.keys[part] for part in over), strict=True)]

    def as_json(self) -> dict[str, Any]:
        """In "probes" null is a probe that has nothing to say, as it failed or did not run yet; "reasons" tells which."""
        measured = {name: measured._asdict() for name, measured in self.probes.items()}
        silent = [probe for probe in self.keys if not any(f"{name}.".startswith(f"{probe}.") for name in measured)]
        return {
            "recipe": self.recipe, "cell": self.cell, "step": self.step, "round": self.round,
            "probes": measured | dict.fromkeys(silent), "flags": list(self.flags), "group": self.group,
            "published": self.published, "status": self.status, "reasons": self.reasons, "keys": self.keys, "state": self.state,
            **({"ticket": self.ticket} if self.ticket else {}),
        }  # fmt: skip


def join(plan: Plan, points: list[Point], found: dict[str, Found], shares: set[str], blocks: dict[str, str],
         verdicts: Verdicts, last: bool) -> Row:  # fmt: skip
    """The row of one state. points: one per trial. found, verdicts: what is stored. shares, blocks: what `accuracies`, `blocked` say."""
    first = points[0]
    keys = {probe: [point.probes[probe] for point in points] for probe in first.probes}
    probes: dict[str, Measured] = {}
    for probe, stages in keys.items():
        probes.update(_measured(probe, [found.get(key) for key in stages], plan.stages[stages[0]].part, shares))
    for name, members in groups(parts_of(plan, first.probes)).items():
        if worst := _worst([{probe: keys[probe][trial] for probe in members} for trial in range(len(points))], found, verdicts):
            knobs = plan.stages[keys[members[0]][0]].part["knobs"]
            norm, eps = knobs["attack"]["knobs"]["norm"], str(Fraction(str(knobs["attack"]["knobs"]["eps"])))
            probes[name] = worst._replace(split=knobs.get("split", "test"), norm=norm, eps=eps)
    done = [all(key in found for key in point.probes.values()) for point in points]
    reasons = {key: blocks[key] for point in points for key in (point.key, *point.probes.values()) if key in blocks}
    return Row(
        recipe=first.recipe, cell=first.cell, step=first.step, round=first.round, order=first.order, last=last,
        trials=len(points), done=sum(done), probes=probes, flags=_flags(points, found), published=_published(plan.suite, first),
        status="done" if all(done) else "failed" if reasons else "partial", reasons=reasons, keys=keys,
        state=[point.key for point in points],
    )  # fmt: skip


def _measured(probe: str, trials: list[Found | None], part: dict[str, Any], shares: set[str]) -> Iterator[tuple[str, Measured]]:
    """The numbers of one probe in one row: its own value under its name, every other one as "probe.name"."""
    about = next((trial.about for trial in trials if trial), {})
    samples = min((trial.about["samples"] for trial in trials if trial and "samples" in trial.about), default=None)
    attack, norm, eps = (own or about.get(word) for own, word in zip(attack_of(part), ("attack", "norm", "eps"), strict=True))
    flags = list(dict.fromkeys(flag for trial in trials if trial for flag in trial.flags))
    for sub in dict.fromkeys(sub for trial in trials if trial for sub in trial.values):
        name = f"{probe}.{sub}" if sub else probe
        values = [trial.values.get(sub) if trial else None for trial in trials]
        mean, sd, n = spread(values)
        interval = wilson(mean, samples) if name in shares and mean is not None and samples else None
        radius = about.get("radii", {}).get(sub, eps)
        yield name, Measured(mean, sd, n, values, interval, about.get("split"), samples, attack, norm, radius, flags, [])


def _worst(trials: list[dict[str, str]], found: dict[str, Found], verdicts: Verdicts) -> Measured | None:
    """The worst case over the attacks of one threat. trials: the key of each probe. None where there are not two with verdicts."""
    # A probe that is done and kept no verdicts never will.
    probes = [probe for probe in trials[0] if all(trial[probe] in verdicts or trial[probe] not in found for trial in trials)]
    if len(probes) < 2 or not any(trial[probe] in verdicts for trial in trials for probe in probes):
        return None
    flags = list(dict.fromkeys(flag for trial in trials for probe in probes if trial[probe] in found for flag in found[trial[probe]].flags))
    values, sizes, missing = list[float | None](), list[int](), dict[str, None]()
    for trial in trials:
        lost = [probe for probe in probes if trial[probe] not in verdicts or INCOMPLETE in found[trial[probe]].flags]
        missing.update(dict.fromkeys(lost))
        robust, size = (0, 0) if lost else verdicts.together([trial[probe] for probe in probes])
        values.append(robust / size if size else None)
        sizes += [size] if size else []
    mean, sd, n = spread(values)
    samples = min(sizes, default=None)
    mean, sd = (None, None) if missing else (mean, sd)
    interval = wilson(mean, samples) if mean is not None and samples else None
    return Measured(mean, sd, n, values, interval, None, samples, " + ".join(probes), None, None, flags, list(missing), tuple(probes))


def attack_of(part: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Name, norm and eps of the attack nested in a probe's part; norm and eps only where all its attacks share them."""
    nested = list(_threats(part.get("knobs")))
    names = list(dict.fromkeys(str(attack["use"]) for attack in nested))
    balls = {(str(attack["knobs"]["norm"]), Fraction(str(attack["knobs"]["eps"]))) for attack in nested}
    if not nested:
        attack = part.get("knobs", {}).get("attack")
        bare = attack.get("use") if isinstance(attack, dict) else None
        return (bare if bare != "none" else None), None, None
    if len(balls) > 1:
        return " + ".join(names), None, None
    ((norm, eps),) = balls
    return " + ".join(names), norm, str(eps)


def _threats(value: Any) -> Iterator[dict[str, Any]]:
    """The outermost parts under `value` that have a norm and an eps."""
    if isinstance(value, dict):
        if "use" in value and {"norm", "eps"} <= set(value.get("knobs", {})):
            yield value
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _threats(item)


def blocked(plan: Plan, store: Store, done: set[str]) -> dict[str, str]:
    """Why each stage that is not done cannot be: its own failure, or that of the first ancestor that failed."""
    reasons: dict[str, str] = {}
    for key, stage in plan.stages.items():
        if key not in done:
            inherited = next((reasons[parent] for parent in sorted(stage.parents()) if parent in reasons), None)
            failure = store.failure(key) if inherited is None else None
            if inherited is not None:
                reasons[key] = inherited
            elif failure is not None:
                reasons[key] = f"{failure} [{key}]"
    return reasons


def _flags(points: list[Point], found: dict[str, Found]) -> dict[str, int]:
    """In how many trials each flag was raised by any probe."""
    count: dict[str, int] = {}
    for point in points:
        raised = [flag for key in point.probes.values() if key in found for flag in found[key].flags]
        for flag in dict.fromkeys(raised):
            count[flag] = count.get(flag, 0) + 1
    return count


def _published(suite: Suite, point: Point) -> dict[str, dict[str, Any]]:
    """Published numbers of this row by probe; of two for one probe the later in the file."""
    place, probes = {"step": point.step, "round": point.round, **point.cell}, {name.split(".")[0] for name in point.probes}
    return {
        entry["probe"]: {word: entry[word] for word in ("value", "source", "caveat") if word in entry}
        for entry in suite.published
        if entry["probe"].split(".")[0] in probes and allowed(entry.get("where", {}), point.recipe, place)
    }
