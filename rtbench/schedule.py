"""What to run and in which order: the stages a store lacks, parents first, each as soon as its parents are there."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from rtbench.errors import StoreError
from rtbench.plan import Plan, Stage
from rtbench.plugins import Catalogue
from rtbench.store import Lost, Store

State = Literal["done", "failed", "busy", "lost", "late", "fatal"]


class Report(NamedTuple):
    """How a stage went. busy: another process runs it. lost: its input `parent` must be made again. late: the budget is spent."""

    key: str
    state: State
    seconds: float = 0.0
    reason: str = ""
    traceback: str = ""
    parent: str = ""


class Executor(Protocol):
    """Runs stages: in this process, or in workers."""

    capacity: int

    def submit(self, stage: Stage) -> None: ...
    def wait(self) -> list[Report]: ...
    def close(self) -> None: ...


@dataclass
class Tally:
    """How a run ended."""

    done: int = 0
    cached: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    late: bool = False


def missing(plan: Plan, store: Store, done: set[str]) -> list[str]:
    """Keys to run, in plan order: those not done, and those done whose dropped weights one of these needs."""
    wanted = {key for key in plan.stages if key not in done}
    for key in reversed(plan.stages):
        if key in wanted:
            wanted.update(ref.split("/")[0] for ref in plan.stages[key].inputs.values() if not store.has_state(ref))
    return [key for key in plan.stages if key in wanted]


def usable(store: Store, done: set[str], corrupt: Iterable[str]) -> set[str]:
    """The finished stages, damaged ones moved out of the way so that they run again."""
    for key in corrupt:
        store.set_aside(key, "corrupt")
    return done - set(corrupt)


class Scheduler:
    """Feeds an executor until everything that can be done is done."""

    def __init__(self, plan: Plan, store: Store, catalogue: Catalogue, executor: Executor, done: set[str], keep: str = "all") -> None:
        self.plan, self.store, self.hook, self.executor, self.keep = plan, store, catalogue.manager.hook, executor, keep
        self.todo = dict.fromkeys(missing(plan, store, done))
        self.tally = Tally(cached=sum(key in done for key in plan.stages))
        self.running: set[str] = set()
        self.busy: dict[str, float] = {}
        self.retried: set[str] = set()
        self.users: dict[str, set[str]] = {}
        for key in plan.stages:
            for parent in plan.stages[key].parents():
                self.users.setdefault(parent, set()).add(key)
        # Depth-first order: what was unlocked last runs first, so that weights are used, and may be dropped, soon after they are made.
        self.ready = [key for key in reversed(self.todo) if not self._waits(key)]

    def run(self) -> Tally:
        """Runs until nothing is left; StoreError if the store cannot go on."""
        for key in self.plan.stages:
            if key not in self.todo:
                self._drop(self.plan.stages[key])
        try:
            while self.todo and not (self.tally.late and not self.running):
                self._fill()
                if not self.running:
                    self._await_others()
                    continue
                for report in self.executor.wait():
                    self.running.discard(report.key)
                    self._take(report)
        finally:
            self.executor.close()
        return self.tally

    def _waits(self, key: str) -> bool:
        return any(parent in self.todo for parent in self.plan.stages[key].parents())

    def _fill(self) -> None:
        while not self.tally.late and self.ready and len(self.running) < self.executor.capacity:
            key = self.ready.pop()
            if key in self.todo and key not in self.running and not self._waits(key):
                self.running.add(key)
                self.executor.submit(self.plan.stages[key])

    def _await_others(self) -> None:
        """Everything that could run is being run by another process: look again in a moment."""
        if not self.ready and not self.busy:
            self.ready = [key for key in reversed(self.todo) if not self._waits(key)]
            return
        if not self.ready:
            time.sleep(0.1)
            for key in list(self.busy):
                del self.busy[key]
                if self.store.has(key):
                    self._finished(key, 0.0, cached=True)
                else:
                    self.ready.append(key)

    def _take(self, report: Report) -> None:
        if report.state == "fatal":
            raise StoreError(report.reason)
        if report.state == "late":
            self.tally.late = True
        elif report.state == "busy":
            self.busy[report.key] = time.monotonic()
        elif report.state == "done":
            self._finished(report.key, report.seconds)
        elif report.state == "lost" and report.key not in self.retried:
            self._again(report)
        else:
            self.store.put_failure(report.key, report.reason, report.traceback)
            self._failed(report.key, report.reason)

    def _finished(self, key: str, seconds: float, cached: bool = False) -> None:
        self.todo.pop(key, None)
        self.tally.done += not cached
        self.tally.cached += cached
        stage = self.plan.stages[key]
        try:
            records: list[list[Any]] = self.store.record(key)["records"]
        except Lost:
            records = []
        self.hook.rtbench_stage_done(stage=stage, records=records, seconds=seconds, cached=cached)
        self.ready += [user for user in sorted(self.users.get(key, ()), key=self._rank) if user in self.todo and not self._waits(user)]
        for parent in stage.parents():
            self._drop(self.plan.stages[parent])
        self._drop(stage)

    def _rank(self, key: str) -> bool:
        """Probes last in the list, so that they are popped first."""
        return self.plan.stages[key].verb == "probe"

    def _drop(self, stage: Stage) -> None:
        """With `keep` other than all: frees the weights that no stage to come needs, those of measured points if keep is none."""
        if self.keep == "all" or any(user in self.todo for user in self.users.get(stage.key, ())):
            return
        measured = any(self.plan.stages[user].verb == "probe" for user in self.users.get(stage.key, ()))
        if self.keep == "none" or not measured:
            self.store.drop_state(stage.key)

    def _failed(self, key: str, reason: str) -> None:
        """The stage and all that depends on it are given up in this run."""
        if key not in self.todo:
            return
        del self.todo[key]
        self.tally.failed[key] = reason
        self.hook.rtbench_stage_failed(stage=self.plan.stages[key], reason=reason)
        for user in self.users.get(key, ()):
            self._failed(user, f"needs {self.plan.stages[key].verb} {key}, which failed")

    def _again(self, report: Report) -> None:
        """An input turned out damaged or dropped: it is moved aside and made again, with whatever it needs itself."""
        self.retried.add(report.key)
        if report.reason:
            self.store.set_aside(report.parent, "corrupt")
        present = {key for key in self.plan.stages if key not in self.todo and key != report.parent}
        for key in missing(self.plan, self.store, present):
            self.todo.setdefault(key)
        self.ready = [key for key in reversed(self.plan.stages) if key in self.todo and key not in self.running and not self._waits(key)]
