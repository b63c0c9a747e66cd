"""The same verbs from Python: plan, run, board. The command line is a thin skin over these."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtbench.commands.report import page_path, report_text, write_report
from rtbench.commands.study import Study, study
from rtbench.errors import UserError, unknown
from rtbench.planning.plan import Plan
from rtbench.plugins import OWN, Part
from rtbench.storage.index import Index
from rtbench.storage.store import Store

if TYPE_CHECKING:
    from rtbench.commands.comparison import Comparison
    from rtbench.engine.run import Options
    from rtbench.ranking.board import Board
    from rtbench.running.schedule import Tally

__all__ = [
    "STORE", "How", "board", "board_of", "compare", "compare_rows", "page_path", "plan", "report_text", "run", "run_study", "summary",
    "write_report",
]  # fmt: skip
STORE = "rtbench-store"


def plan(suite: str, **choices: Any) -> Plan:
    """The runs and stages of a suite; the arguments are those of `run` that choose what to run."""
    return study(suite, **choices).plan


@dataclass(frozen=True)
class How:
    """How a study is run; none of it changes a result's name.

    workers: processes; None is one per core, 4 at most, on a CPU and one on a GPU; 1 runs in this process unless `isolate` or a part,
    nested ones included, is not built in: what such a part does (hang, exit, fork, run out of memory) ends with a worker.
    threads: per process; None shares the cores among the workers, as far as OMP_NUM_THREADS allows. budget: seconds after which it
    stops, to be continued. timeout: seconds without a sign of life after which a worker is killed. keep: "all" weights, those of
    "measured" states, or "none".
    checkpoint_seconds: how often a stage saves where it is. witness: probes keep adversarial examples, and finished ones that did not
    run again for them. stack: networks that differ by seed and weights alone are trained as one, up to so many at once.
    """

    workers: int | None = None
    isolate: bool = False
    threads: int | None = None
    budget: float | None = None
    timeout: float = 1800.0
    keep: str = "all"
    checkpoint_seconds: float = 10.0
    witness: bool = False
    stack: int = 1

    def __post_init__(self) -> None:
        if self.keep not in ("all", "measured", "none"):
            raise unknown("choice", self.keep, ["all", "measured", "none"], "keep")
        for name in ("workers", "threads", "stack"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}: {value} is not at least 1")

    def settled(self, device: str) -> How:
        """The same with workers and threads decided."""
        from rtbench.engine.processes import cores, threads_of

        # Small networks gain more from a process per core than from a thread per core; a GPU is one queue.
        workers = self.workers or (1 if device.startswith("cuda") else min(4, cores()))
        return replace(self, workers=workers, threads=self.threads or threads_of(workers))


def run(suite: str, *, store: str | Path = STORE, listener: Any = None, accept: Iterable[str] = (), **choices: Any) -> Board:
    """Runs what the store lacks of a suite and returns its board; its `tally` says how many stages were done, cached and failed.

    suite: a path or the name of a shipped suite. listener: an object with event hooks (see `rtbench.hookspecs`). accept: names of parts;
    results of another code of them are kept, from now on without a warning. choices: profile, set, only, trials, device, plugins, data
    as on the command line, and the fields of `How`.
    """
    from rtbench.commands import drift

    how = How(**{field.name: choices.pop(field.name) for field in fields(How) if field.name in choices})
    what = study(suite, **choices)
    for changed in drift.check(what, store, [accept] if isinstance(accept, str) else accept):
        warnings.warn(str(changed), stacklevel=2)
    return run_study(what, store, how, listener)


def run_study(what: Study, store: str | Path, how: How, listener: Any = None) -> Board:
    """`run` for a study that is already planned."""
    from rtbench.commands.upkeep import clean
    from rtbench.running.workers import set_threads

    how = how.settled(what.options.device)
    set_threads(how.threads)
    deadline = time.monotonic() + how.budget if how.budget is not None else None
    options = replace(what.options, threads=how.threads, checkpoint_seconds=how.checkpoint_seconds, deadline=deadline,
                      witness=how.witness)  # fmt: skip
    opened = Store(store)
    opened.writable()
    clean(opened)
    tally = _execute(what, opened, options, how, listener)
    board = board_of(what, opened.path)
    board.tally = tally
    return board


def _execute(what: Study, store: Store, options: Options, how: How, listener: Any) -> Tally:
    from rtbench.engine.code import digests, used
    from rtbench.running.attempt import Here
    from rtbench.running.schedule import Scheduler, owes_witness, usable
    from rtbench.running.workers import Workers

    assert how.workers is not None
    index = Index(store)
    done = usable(store, index.done(), index.corrupt)
    index.close()
    if options.witness:
        done = {key for key in done if key not in what.plan.stages or not owes_witness(what.plan.stages[key], store, what.catalogue)}
    parts = used(what.plan.stages.values(), what.catalogue)
    options = replace(options, code=digests(parts), places=what.plan.places())
    apart = how.isolate or how.workers > 1 or _foreign(parts.values())
    executor = Workers(store, what.catalogue, options, how.workers, how.timeout) if apart else Here(store, what.catalogue, options)
    if listener is not None:
        what.catalogue.manager.register(listener)
    try:
        return Scheduler(what.plan, store, what.catalogue, executor, done, how.keep, how.stack).run()
    finally:
        if listener is not None:
            what.catalogue.manager.unregister(listener)


def _foreign(parts: Iterable[Part]) -> bool:
    """Whether any part is not built in."""
    return any(part.owner != OWN for part in parts)


def board(suite: str, *, store: str | Path = STORE, **choices: Any) -> Board:
    """The board of a suite from what the store has; computes nothing."""
    return board_of(study(suite, **choices), store)


def compare(suite: str, one: str, other: str, *, store: str | Path = STORE, **choices: Any) -> Comparison:
    """By how much one row of a suite's board beats another, for every column of both, paired by trial and sample.

    one, other: the beginning of a key of the row, or text such as "recipe=sparse,drop=0.9" that one row alone is.
    """
    return compare_rows(study(suite, **choices), one, other, store)


def compare_rows(what: Study, one: str, other: str, store: str | Path) -> Comparison:
    """`compare` for a study that is already planned."""
    from rtbench.commands import compare as comparing
    from rtbench.ranking.board import make
    from rtbench.ranking.worst import Verdicts

    opened = Store(store, create=False)
    index = Index(opened)
    try:
        board = make(what.plan, opened, index)
        verdicts = Verdicts(index, [key for row in board.rows for keys in row.keys.values() for key in keys])
        return comparing.compare(board, what.plan, one, other, verdicts)
    finally:
        index.close()


def board_of(what: Study, store: str | Path) -> Board:
    """`board` for a study that is already planned."""
    from rtbench.engine.provenance import overview
    from rtbench.ranking.board import make

    opened = Store(store, create=False)
    index = Index(opened)
    try:
        board = make(what.plan, opened, index)
        board.meta.update(overview((opened.provenance(point.key) for point in what.plan.points), board.plugins))
        return board
    finally:
        index.close()


def summary(board: Board, path: str | Path) -> str:
    """The closing lines of a run: what was done, what failed, where the report is."""
    tally = board.tally
    lines = []
    if tally is not None:
        lines.append(f"{tally.done} stages run, {tally.cached} already there" + (f", {len(tally.failed)} failed" if tally.failed else ""))
        if tally.stacked:
            lines.append(f"{tally.stacked} of them trained with others as one")
        if tally.late:
            lines.append("The budget is spent; run the same command again to continue.")
    return "\n".join([*lines, f"Report: {path}"])
