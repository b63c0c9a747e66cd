"""Progress on stderr while stages run: one bar for the whole, one for each stage that takes a while. Cheap at any rate of events."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from rtbench.hookspecs import hookimpl
from rtbench.planning.plan import Plan, Stage
from rtbench.terminal.remaining import Running, Sort, remaining

SLOTS = 8
"""Stages that run at once and have a bar."""
REFRESH = 8
"""Redraws a second, whatever happens."""
QUIET = 60.0
"""Seconds between lines where nobody looks at a terminal."""


class Screen:
    """Listens to the event hooks and shows progress; quiet where stderr is no terminal: a line a minute, per failure, and at the end.

    plan: what runs. Use as a context manager.
    """

    def __init__(self, plan: Plan, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.quiet = not self.console.is_terminal
        self.left = Counter(map(_sort, plan.stages.values()))
        self.total = sum(self.left.values())
        self.spent: dict[Sort, tuple[float, int]] = {}
        self.running: dict[str, Running] = {}
        self.finished: set[str] = set()
        self.counts = {"run": 0, "cached": 0, "failed": 0, "skipped": 0}
        self.failed: set[str] = set()
        self.started = self.said = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TextColumn("{task.fields[note]}", markup=False),
            console=self.console, refresh_per_second=REFRESH, transient=True, disable=self.quiet,
        )  # fmt: skip
        self.whole = self.progress.add_task("stages", total=self.total, note="")
        # Adding a task redraws, so all that may be needed are there from the start, hidden.
        self.free = [self.progress.add_task("", total=1, visible=False, note="") for _ in range(SLOTS)]
        self.bars: dict[str, TaskID] = {}

    def __enter__(self) -> Screen:
        self.started = self.said = time.monotonic()
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()
        if self.quiet:
            self._line(self.summary())

    @hookimpl
    def rtbench_progress(self, stage: Stage, done: int, total: int) -> None:
        if stage.key in self.finished:
            return
        share = done / max(total, 1)
        first = self.running.get(stage.key) or Running(_sort(stage), time.monotonic(), share, share)
        self.running[stage.key] = first._replace(share=share)
        if self.quiet:
            return
        if stage.key not in self.bars:
            if not self.free:
                return
            self.bars[stage.key] = self.free.pop(0)
            self.progress.update(self.bars[stage.key], description=describe(stage), visible=True)
        self.progress.update(self.bars[stage.key], completed=done, total=max(total, 1), note=f"{done}/{total}")

    @hookimpl
    def rtbench_stage_done(self, stage: Stage, records: list[list[Any]], seconds: float, cached: bool) -> None:
        if not self._finish(stage):
            return
        self.counts["cached" if cached else "run"] += 1
        if not cached:
            spent, count = self.spent.get(_sort(stage), (0.0, 0))
            self.spent[_sort(stage)] = spent + seconds, count + 1
        self._advance()

    @hookimpl
    def rtbench_stage_failed(self, stage: Stage, reason: str) -> None:
        if not self._finish(stage):
            return
        skipped = bool(stage.parents() & self.failed)
        self.failed.add(stage.key)
        self.counts["skipped" if skipped else "failed"] += 1
        if not skipped:
            self._line(f"{describe(stage)} failed: {' '.join(reason.split())} [{stage.key}]")
        self._advance()

    def summary(self) -> str:
        """How it went, in one line."""
        words = {"run": "run", "cached": "already there", "failed": "failed", "skipped": "skipped because of that"}
        counts = [f"{self.counts[name]} {text}" for name, text in words.items() if self.counts[name] or name == "run"]
        return f"stages: {', '.join(counts)}, in {duration(time.monotonic() - self.started)}"

    def remaining(self) -> float | None:
        """Seconds that are left; None before anything is known."""
        now = time.monotonic()
        return remaining(self.left, self.spent, list(self.running.values()), now, now - self.started)

    def _finish(self, stage: Stage) -> bool:
        """Books the stage; False if it was booked before."""
        if stage.key in self.finished:
            return False
        self.finished.add(stage.key)
        self.running.pop(stage.key, None)
        self.left[_sort(stage)] = max(0, self.left[_sort(stage)] - 1)
        if stage.key in self.bars:
            slot = self.bars.pop(stage.key)
            self.progress.update(slot, visible=False, completed=0)
            self.free.append(slot)
        return True

    def _advance(self) -> None:
        now = time.monotonic()
        if self.quiet and now - self.said < QUIET:
            return
        left = self.remaining()
        done, bad = len(self.finished), self.counts["failed"] + self.counts["skipped"]
        note = f"{done}/{self.total}" + (f", {bad} failed" if bad else "") + (f", about {duration(left)} left" if left else "")
        self.progress.update(self.whole, completed=done, note=note)
        if self.quiet:
            self.said = now
            self._line(f"stages: {note}")

    def _line(self, text: str) -> None:
        self.progress.console.print(Text(text), soft_wrap=True)


def _sort(stage: Stage) -> Sort:
    """Stages of one sort take about as long as each other."""
    return stage.verb, stage.part.get("use", ""), _attack(stage), stage.net.get("use", ""), stage.data.get("use", "")


def _attack(stage: Stage) -> str:
    """Of a probe, or of the objective that a trainer or pruner is given."""
    knobs = stage.part.get("knobs", {})
    objective = knobs.get("objective")
    attack = (objective.get("knobs", {}) if isinstance(objective, dict) else knobs).get("attack")
    return str(attack["use"]) if isinstance(attack, dict) and "use" in attack else ""


def describe(stage: Stage) -> str:
    """A stage in a few words: train sgd under fgsm (mlp, mnist), probe accuracy under pgd (mlp, mnist)."""
    attack = _attack(stage)
    under = f" under {attack}" if attack not in ("", "none") else ""
    part = f" {stage.part['use']}" if stage.part.get("use") else ""
    return f"{stage.verb}{part}{under} ({stage.net.get('use', '')}, {stage.data.get('use', '')})"


def duration(seconds: float) -> str:
    """0.4 s, 42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, small, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {small}"
    return f"{whole} s"
