"""One try at one stage, whatever comes of it; and the executor that makes its tries in this process."""

from __future__ import annotations

import contextlib
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from rtbench.engine.loop import OutOfBudget
from rtbench.engine.run import Options, StageFailure, run_stage
from rtbench.engine.stacks import run_stack
from rtbench.errors import StoreError, UserError
from rtbench.evaluation.judge import AttackFailure
from rtbench.parts.kinds import Unstackable
from rtbench.planning.plan import Stage
from rtbench.plugins import Catalogue
from rtbench.running.schedule import Report, owes_witness
from rtbench.storage.results import Lost
from rtbench.storage.store import Store

Progress = Callable[[Stage, int, int], None]


def attempt(stage: Stage, store: Store, found: Catalogue, options: Options, progress: Progress) -> Report:
    """Runs one stage under its claim and says how it went; never raises but for interrupts."""
    started = time.monotonic()
    if options.deadline is not None and started > options.deadline:
        return Report(stage.key, "late")
    try:
        with store.claim(stage.key) as mine:
            if not mine:
                return Report(stage.key, "busy")
            if store.complete(stage.key) and not (options.witness and owes_witness(stage, store, found)):
                return Report(stage.key, "cached")
            _run(stage, store, found, options, progress)
        return Report(stage.key, "done", time.monotonic() - started)
    except OutOfBudget:
        return Report(stage.key, "late")
    except StoreError as error:
        return Report(stage.key, "fatal", reason=str(error))
    except Lost as error:
        return Report(stage.key, "lost", reason=str(error), parent=error.key)
    except (Exception, SystemExit) as error:
        return Report(stage.key, "failed", reason=_sentence(error), traceback=traceback.format_exc())


def attempt_all(stages: list[Stage], store: Store, found: Catalogue, options: Options, progress: Progress) -> list[Report]:
    """One try at each stage, several of them as one stack; what does not come out of it is run alone, from where it was saved."""
    made: dict[str, float] = {}
    if len(stages) > 1:
        made = _stack(stages, store, found, options, progress)
    return [
        Report(stage.key, "done", made[stage.key], stack=len(made))
        if stage.key in made
        else attempt(stage, store, found, options, progress)
        for stage in stages
    ]


def _stack(stages: list[Stage], store: Store, found: Catalogue, options: Options, progress: Progress) -> dict[str, float]:
    """Seconds by key of those that could be trained as one."""
    started = time.monotonic()
    with contextlib.ExitStack() as claims:
        mine = [stage for stage in stages if claims.enter_context(store.claim(stage.key)) and not store.complete(stage.key)]
        if len(mine) > 1:
            try:
                run_stack(mine, store, found, options, progress)
            except (OutOfBudget, Lost, StoreError):  # each alone will say so
                return {}
            except (Exception, SystemExit) as error:
                why = error if isinstance(error, Unstackable) else traceback.format_exc()
                warnings.warn(f"{len(mine)} networks are trained each alone, not as one: {why}", stacklevel=2)
        made = [stage.key for stage in mine if store.complete(stage.key)]
    return dict.fromkeys(made, (time.monotonic() - started) / max(1, len(made)))


def _run(stage: Stage, store: Store, found: Catalogue, options: Options, progress: Progress) -> None:
    try:
        run_stage(stage, store, found, options, lambda done, total: progress(stage, done, total))
    except (Lost, StoreError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit):
        # The part is about to be corrected; what the faulty one saved must not find its way into what the corrected one makes.
        store.forget_work(stage.key)
        raise


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if text and isinstance(error, UserError | StageFailure | AttackFailure):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass
class Here:
    """Runs stages one at a time in this process."""

    store: Store
    catalogue: Catalogue
    options: Options
    capacity: int = 1
    _reports: list[Report] = field(default_factory=list)

    def submit(self, stages: list[Stage]) -> None:
        hook = self.catalogue.manager.hook
        self._reports += attempt_all(
            stages, self.store, self.catalogue, self.options, lambda s, d, t: hook.rtbench_progress(stage=s, done=d, total=t)
        )

    def wait(self) -> list[Report]:
        reports, self._reports = self._reports, []
        return reports

    def close(self) -> None:
        pass
