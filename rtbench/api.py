"""The same verbs from Python: plan, run, board. The command line is a thin skin over these."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtbench import suite as suites
from rtbench.errors import UserError, unknown
from rtbench.index import Index
from rtbench.plan import Plan, expand
from rtbench.plugins import Catalogue, catalogue
from rtbench.store import Store

if TYPE_CHECKING:
    from rtbench.board import Board
    from rtbench.engine import Options
    from rtbench.schedule import Tally

STORE = "rtbench-store"


@dataclass
class Study:
    """A suite, planned over a catalogue, and what it is run with."""

    plan: Plan
    catalogue: Catalogue
    options: Options


def study(
    suite: str, profile: str | None = None, set: Iterable[str] = (), only: Mapping[str, list[str]] | Iterable[str] = (),
    trials: int | None = None, device: str = "auto", plugins: Iterable[str] = (), data: str | None = None,
) -> Study:  # fmt: skip
    """Loads the suite and expands it; UserError for every mistake in it, before anything is written.

    set, plugins: one text or several. only: {"net": ["mlp"]}, or texts such as "net=mlp".
    """
    set, plugins, only = ((value,) if isinstance(value, str) else value for value in (set, plugins, only))
    only = dict(only) if isinstance(only, Mapping) else chosen(only)
    import torch

    from rtbench.board import ranking, validate
    from rtbench.data import data_digest
    from rtbench.engine import Options, load_data

    loaded = suites.load(suite, profile, set, trials)
    found = catalogue(plugins)
    options = Options(root=data_root(data), device=pick_device(device), threads=torch.get_num_threads())

    def digest(part: dict[str, Any], where: str) -> str:
        name = str(part)
        if name not in digests:
            try:
                digests[name] = data_digest(load_data(part, found, options))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        return digests[name]

    digests: dict[str, str] = {}
    try:
        validate(loaded)
    except UserError as error:
        raise UserError(f"{loaded.path}: {error}") from None
    expanded = expand(loaded, found, digest, only)
    ranking(expanded)  # now, not when everything has run
    return Study(expanded, found, options)


def chosen(texts: Iterable[str]) -> dict[str, list[str]]:
    """{"recipe": ["dense"], "net": ["mlp", "lenet"]} from recipe=dense, net=mlp, net=lenet."""
    found: dict[str, list[str]] = {}
    for text in texts:
        for piece in re.split(r",(?![^\[]*\])", text):  # a list such as [64, 32] is one value
            word, sign, value = piece.partition("=")
            if not sign:
                raise UserError(f'--only "{piece}" is not of the form recipe=name or axis=value')
            found.setdefault(word.strip(), []).append(value.strip())
    return found


def plan(suite: str, **choices: Any) -> Plan:
    """The runs and stages of a suite; the arguments are those of `run` that choose what to run."""
    return study(suite, **choices).plan


@dataclass(frozen=True)
class How:
    """How a study is run; none of it changes a result's name.

    workers: processes; None is one per core, 4 at most, on a CPU and one on a GPU; 1 runs in this process unless `isolate` or a part,
    nested ones included, is not built in: what such a part does (hang, exit, fork, run out of memory) ends with a worker.
    threads: per process; None shares the cores among the workers. budget: seconds after which it stops, to be continued.
    timeout: seconds without a sign of life after which a worker is killed. keep: "all" weights, those of "measured" states, or "none".
    checkpoint_seconds: how often a stage saves where it is. witness: probes keep adversarial examples, and finished ones that did not
    run again for them.
    """

    workers: int | None = None
    isolate: bool = False
    threads: int | None = None
    budget: float | None = None
    timeout: float = 1800.0
    keep: str = "all"
    checkpoint_seconds: float = 10.0
    witness: bool = False

    def __post_init__(self) -> None:
        if self.keep not in ("all", "measured", "none"):
            raise unknown("choice", self.keep, ["all", "measured", "none"], "keep")
        for name in ("workers", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}: {value} is not at least 1")

    def settled(self, device: str) -> How:
        """The same with workers and threads decided."""
        from rtbench.processes import cores

        # Small networks gain more from a process per core than from a thread per core; a GPU is one queue.
        workers = self.workers or (1 if device.startswith("cuda") else min(4, cores()))
        return replace(self, workers=workers, threads=self.threads or max(1, cores() // workers))


def run(suite: str, *, store: str | Path = STORE, listener: Any = None, **choices: Any) -> Board:
    """Runs what the store lacks of a suite and returns its board; its `tally` says how many stages were done, cached and failed.

    suite: a path or the name of a shipped suite. listener: an object with event hooks (see `rtbench.hookspecs`). choices: profile, set,
    only, trials, device, plugins, data as on the command line, and the fields of `How`.
    """
    how = How(**{field.name: choices.pop(field.name) for field in fields(How) if field.name in choices})
    return run_study(study(suite, **choices), store, how, listener)


def run_study(what: Study, store: str | Path, how: How, listener: Any = None) -> Board:
    """`run` for a study that is already planned."""
    from rtbench.upkeep import clean
    from rtbench.workers import set_threads

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
    from rtbench.attempt import Here
    from rtbench.schedule import Scheduler, owes_witness, usable
    from rtbench.workers import Workers

    assert how.workers is not None
    index = Index(store)
    done = usable(store, index.done(), index.corrupt)
    index.close()
    if options.witness:
        done = {key for key in done if key not in what.plan.stages or not owes_witness(what.plan.stages[key], store, what.catalogue)}
    apart = how.isolate or how.workers > 1 or _foreign(what)
    executor = Workers(store, what.catalogue, options, how.workers, how.timeout) if apart else Here(store, what.catalogue, options)
    if listener is not None:
        what.catalogue.manager.register(listener)
    try:
        return Scheduler(what.plan, store, what.catalogue, executor, done, how.keep).run()
    finally:
        if listener is not None:
            what.catalogue.manager.unregister(listener)


def _foreign(what: Study) -> bool:
    """Whether any part of the plan, nested ones included, is not built in."""
    from rtbench.provenance import owners

    return bool(owners(what.catalogue, [[stage.part, stage.net, stage.data] for stage in what.plan.stages.values()]).keys() - {"rtbench"})


def board(suite: str, *, store: str | Path = STORE, **choices: Any) -> Board:
    """The board of a suite from what the store has; computes nothing."""
    return board_of(study(suite, **choices), store)


def data_root(given: str | None) -> str:
    """The data folder: given, or RTBENCH_DATA, or ./data."""
    return str(Path(given or os.environ.get("RTBENCH_DATA") or "data").expanduser().resolve())


def pick_device(name: str) -> str:
    """ "auto" is the first GPU if there is one; UserError for a device that is not here."""
    import torch

    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device "{name}" is not available: {str(error).splitlines()[0]}') from None
    return name


def board_of(what: Study, store: str | Path) -> Board:
    """`board` for a study that is already planned."""
    from rtbench.board import make
    from rtbench.provenance import overview

    opened = Store(store, create=False)
    index = Index(opened)
    try:
        board = make(what.plan, opened, index)
        board.meta.update(overview(opened.provenance(point.key) for point in what.plan.points))
        return board
    finally:
        index.close()


def write_report(board: Board, found: Catalogue, format: str, path: str | Path) -> None:
    """Writes the board with a report part, whole or not at all."""
    from rtbench.store import explained

    target = Path(path)
    with explained(target, "--output"):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            found.get("report", format).function(board, aside)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)


def report_text(board: Board, found: Catalogue, format: str) -> str:
    """The board as the text a report part would write."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_report(board, found, format, Path(folder) / "board")
        return (Path(folder) / "board").read_text(encoding="utf-8")


def summary(board: Board, path: str | Path) -> str:
    """The closing lines of a run: what was done, what failed, where the report is."""
    tally = board.tally
    lines = []
    if tally is not None:
        lines.append(f"{tally.done} stages run, {tally.cached} already there" + (f", {len(tally.failed)} failed" if tally.failed else ""))
        if tally.late:
            lines.append("The budget is spent; run the same command again to continue.")
    return "\n".join([*lines, f"Report: {path}"])
