"""What to run and in which order: the stages a store lacks, parents first, each as soon as its parents are there."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from rtbench.errors import StoreError
from rtbench.planning.plan import Plan, Stage
from rtbench.plugins import Catalogue
from rtbench.running.stacks import Stacks
from rtbench.storage.results import WITNESS, Lost
from rtbench.storage.store import Store

State = Literal["done", "cached", "failed", "busy", "lost", "late", "fatal", "apart"]
PAUSE = 0.1
"""Seconds before looking again whether another process has finished a stage."""


class Report(NamedTuple):
    """How a stage went. cached: another process made it meanwhile. busy: another one runs it. lost: its input `parent` must be made
    again. late: the budget is spent. fatal: the store cannot go on. apart: to be tried again, alone. stack: how many networks were trained
    as one."""

    key: str
    state: State
    seconds: float = 0.0
    reason: str = ""
    traceback: str = ""
    parent: str = ""
    stack: int = 1


class Executor(Protocol):
    """Runs stages: in this process, or in workers; of several submitted at once all are reported at once."""

    capacity: int

    def submit(self, stages: list[Stage]) -> None: ...
    def wait(self) -> list[Report]: ...
    def close(self) -> None: ...


@dataclass
class Tally:
    """How a run ended: stages run, stages that were there or that another process ran, stages that failed or lack a failed one."""

    done: int = 0
    cached: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    late: bool = False
    stacked: int = 0
    """Stages whose networks were trained with others as one."""


def missing(plan: Plan, store: Store, done: set[str]) -> list[str]:
    """Keys to run, in plan order: those not done, and those done whose dropped weights one of these needs."""
    wanted = {key for key in plan.stages if key not in done}
    for key in reversed(plan.stages):
        if key in wanted:
            wanted.update(ref.split("/")[0] for ref in plan.stages[key].states() if not store.has_state(ref))
    return [key for key in plan.stages if key in wanted]


def owes_witness(stage: Stage, store: Store, found: Catalogue) -> bool:
    """Whether a finished probe has an attack whose adversarial examples it can keep and did not."""
    if stage.verb != "probe" or not getattr(found.get("probe", stage.part["use"]).function, "witnesses", False):
        return False
    attack = stage.part["knobs"].get("attack") or {}
    return "eps" in attack.get("knobs", {}) and WITNESS not in store.record(stage.key)["files"]


def usable(store: Store, done: set[str], corrupt: Iterable[str]) -> set[str]:
    """The finished stages, damaged ones moved out of the way so that they run again."""
    healed = {key for key in corrupt if not _move(store, key)}
    return done | healed


def _move(store: Store, key: str) -> bool:
    """Moves a result aside if it is damaged, as another process may have found and mended before."""
    damaged = not store.sound(key)
    if damaged:
        store.set_aside(key, "corrupt")
    return damaged


class Scheduler:
    """Feeds an executor until everything that can be done is done."""

    def __init__(
        self, plan: Plan, store: Store, catalogue: Catalogue, executor: Executor, done: set[str], keep: str = "all", stack: int = 1
    ) -> None:
        self.plan, self.store, self.hook, self.executor, self.keep = plan, store, catalogue.manager.hook, executor, keep
        self.stacks = Stacks(plan, catalogue, stack)
        self.todo = dict.fromkeys(missing(plan, store, done))
        self.tally = Tally()
        self.ran: set[str] = set()
        self.jobs: list[set[str]] = []
        """What the executor runs: the keys of each stack, or of one stage."""
        self.busy: set[str] = set()
        self.again: set[tuple[str, str]] = set()
        self.users: dict[str, set[str]] = {}
        for key in plan.stages:
            for parent in plan.stages[key].parents():
                self.users.setdefault(parent, set()).add(key)
        # Depth-first order: what was unlocked last runs first, so that weights are used, and may be dropped, soon after they are made.
        self.ready = self._runnable()

    def run(self) -> Tally:
        """Runs until nothing is left; StoreError if the store cannot go on."""
        for key in self.plan.stages:
            if key not in self.todo:
                self.hook.rtbench_stage_done(stage=self.plan.stages[key], records=[], seconds=0.0, cached=True)
                self._drop(self.plan.stages[key])
        try:
            while self.todo and not (self.tally.late and not self.jobs):
                self._fill()
                if not self.jobs:
                    self._await_others()
                for report in self.executor.wait() if self.jobs else ():
                    self.jobs = [left for job in self.jobs if (left := job - {report.key})]
                    self._take(report)
        finally:
            self.executor.close()
        self.tally.cached = len(self.plan.stages.keys() - self.ran - self.tally.failed.keys() - self.todo.keys())
        return self.tally

    def _runnable(self) -> list[str]:
        return [key for key in reversed(self.plan.stages) if self._may_run(key)]

    def _may_run(self, key: str) -> bool:
        return key in self.todo and not any(key in job for job in self.jobs) and not self._waits(key)

    def _waits(self, key: str) -> bool:
        return any(parent in self.todo for parent in self.plan.stages[key].parents())

    def _fill(self) -> None:
        while not self.tally.late and self.ready and len(self.jobs) < self.executor.capacity:
            job = self.stacks.take(self.ready, self._may_run)
            if job:
                self.busy.difference_update(job)
                self.jobs.append(set(job))
                self.executor.submit([self.plan.stages[key] for key in job])

    def _await_others(self) -> None:
        """All that could run is being run by another process: tries it again in a moment."""
        if self.busy:
            time.sleep(PAUSE)
        self.ready = self._runnable()

    def _take(self, report: Report) -> None:
        if report.state == "fatal":
            raise StoreError(report.reason)
        if report.state == "late":
            self.tally.late = True
        elif report.state == "busy":
            self.busy.add(report.key)
        elif report.state == "apart":
            self.stacks.apart.add(report.key)
            self.ready.append(report.key)
        elif report.state in ("done", "cached"):
            self._finished(report)
        elif report.state == "lost" and (report.key, report.parent) not in self.again:
            self._again(report)
        else:
            self.store.put_failure(report.key, report.reason, report.traceback)
            self._failed(report.key, report.reason)

    def _finished(self, report: Report) -> None:
        key, cached = report.key, report.state == "cached"
        self.todo.pop(key, None)
        if not cached:
            self.ran.add(key)
            self.tally.done += 1
            self.tally.stacked += report.stack > 1
        stage = self.plan.stages[key]
        try:
            records: list[list[Any]] = self.store.record(key)["records"]
        except Lost:
            records = []
        self.hook.rtbench_stage_done(stage=stage, records=records, seconds=report.seconds, cached=cached)
        unlocked = [user for user in sorted(self.users.get(key, ()), key=self._rank) if user in self.todo and not self._waits(user)]
        self.ready = [*sorted(self.busy), *self.ready, *unlocked]
        for parent in stage.parents():
            self._drop(self.plan.stages[parent])
        self._drop(stage)

    def _rank(self, key: str) -> tuple[bool, str]:
        """Probes last in the list, so that they are popped first."""
        return self.plan.stages[key].verb == "probe", key

    def _drop(self, stage: Stage) -> None:
        """With `keep` other than all: frees the weights that no stage to come needs, those of measured points if keep is none.

        What failed is to come again, at the next run.
        """
        users = self.users.get(stage.key, set())
        if self.keep == "all" or any(user in self.todo or user in self.tally.failed for user in users):
            return
        measured = any(self.plan.stages[user].verb == "probe" for user in users)
        if self.keep == "none" or not measured:
            self.store.drop_state(stage.key)

    def _failed(self, key: str, reason: str) -> None:
        """The stage and all that depends on it are given up in this run."""
        given_up = [(key, reason)]
        while given_up:
            key, reason = given_up.pop()
            if key in self.todo:
                del self.todo[key]
                self.tally.failed[key] = reason
                self.hook.rtbench_stage_failed(stage=self.plan.stages[key], reason=reason)
                needs = f"needs {self.plan.stages[key].verb} {key}, which failed"
                given_up += [(user, needs) for user in sorted(self.users.get(key, ()), reverse=True)]

    def _again(self, report: Report) -> None:
        """An input turned out damaged or dropped: it is moved aside and made again, with whatever it needs itself."""
        self.again.add((report.key, report.parent))
        if self.store.has(report.parent):
            _move(self.store, report.parent)
        present = {key for key in self.plan.stages if key not in self.todo and key != report.parent}
        for key in missing(self.plan, self.store, present):
            self.todo.setdefault(key)
        self.ready = self._runnable()
