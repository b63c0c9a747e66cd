"""Worker processes: a stage's crash, hang or lack of memory ends one of them and is that stage's failure."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rtbench.engine import provenance
from rtbench.engine.memory import give_back, reuse_freed
from rtbench.engine.processes import how_it_died, server, without_main
from rtbench.engine.run import Options
from rtbench.planning.plan import Stage
from rtbench.plugins import Catalogue, catalogue
from rtbench.running.attempt import attempt_all
from rtbench.running.schedule import Report, State
from rtbench.storage.store import Store

LEAVING = "leaving"
"""What a worker says before the report of its last stage."""
START = 300.0
"""Seconds that a new worker may take to import what it needs."""


@dataclass
class _Worker:
    """ready: it has started, and `timeout` applies to it. leaving: it takes no other stage, for a part left something running in it."""

    process: Any
    pipe: Connection
    stages: list[Stage] = field(default_factory=list)
    alive_at: float = 0.0
    ready: bool = False
    leaving: bool = False


class Workers:
    """Runs stages in `capacity` processes, each replaced when it dies or is silent for `timeout` seconds.

    Each works in an empty folder that goes with it, leads a process group, which is killed with it, and is refused more memory than the
    machine has, so that what a part does to these ends with its own stage.
    """

    def __init__(self, store: Store, found: Catalogue, options: Options, capacity: int, timeout: float) -> None:
        self.store, self.catalogue, self.options, self.capacity, self.timeout = store, found, options, capacity, timeout
        self._context = server()
        self._folder = tempfile.TemporaryDirectory(prefix="rtbench-", ignore_cleanup_errors=True)
        self._idle: list[_Worker] = []
        self._running: list[_Worker] = []

    def submit(self, stages: list[Stage]) -> None:
        worker = self._idle.pop() if self._idle else self._start()
        try:
            worker.pipe.send(stages)
        except OSError:  # it died idle
            worker = self._start()
            worker.pipe.send(stages)
        worker.stages, worker.alive_at = stages, time.monotonic()
        self._running.append(worker)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        files = tuple(str(Path(file).absolute()) for file in self.catalogue.files)
        arguments = (theirs, str(self.store.path.absolute()), files, self.options, self._folder.name, dict(os.environ))
        process = self._context.Process(target=_serve, args=arguments, daemon=True)
        with without_main():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def wait(self) -> list[Report]:
        """Blocks until at least one stage ended, passing progress on meanwhile."""
        reports: list[Report] = []
        while not reports and self._running:
            handles = [worker.pipe for worker in self._running] + [worker.process.sentinel for worker in self._running]
            ready = wait(handles, timeout=1.0)
            for worker in list(self._running):
                if worker.pipe in ready or worker.process.sentinel in ready:
                    reports += self._listen(worker)
                elif (silence := time.monotonic() - worker.alive_at) > (self.timeout if worker.ready else START):
                    reports += self._lost(worker, f"gave no sign of life for {silence:.0f} s (see --timeout) and was killed")
        return reports

    def _listen(self, worker: _Worker) -> list[Report]:
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                worker.alive_at = time.monotonic()
                if message is None:
                    worker.ready = True
                elif message == LEAVING:
                    worker.leaving = True
                elif isinstance(message, list):
                    self._running.remove(worker)
                    if worker.leaving:
                        _end(worker)
                    else:
                        self._idle.append(worker)
                    return message
                else:
                    number, done, total = message
                    self.catalogue.manager.hook.rtbench_progress(stage=worker.stages[number], done=done, total=total)
        except (EOFError, OSError):
            pass
        else:
            if worker.process.is_alive():
                return []
        worker.process.join(5)
        return self._lost(worker, how_it_died(worker.process.exitcode))

    def _lost(self, worker: _Worker, reason: str) -> list[Report]:
        """Of a stack nobody knows whose fault it was."""
        self._running.remove(worker)
        _end(worker)
        state: State = "failed" if len(worker.stages) == 1 else "apart"
        return [Report(stage.key, state, reason=f"its worker process {reason}") for stage in worker.stages]

    def close(self) -> None:
        for worker in self._idle + self._running:
            _end(worker)
        self._folder.cleanup()


def _end(worker: _Worker) -> None:
    """Kills a worker and whatever it started."""
    worker.pipe.close()
    with contextlib.suppress(OSError):  # it is not there any more, or does not lead its group yet
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join(5)


def _serve(pipe: Connection, path: str, files: tuple[str, ...], options: Options, folder: str, environment: dict[str, str]) -> None:
    """A worker's life: stages come in, reports go out, until the pipe closes or a part left something running."""
    _settle(folder, options, environment)
    store, found = Store(path), catalogue(files)
    own, threads = os.getpid(), threading.active_count()

    def progress(stage: Stage, done: int, total: int) -> None:
        try:
            pipe.send((stages.index(stage), done, total))
        except OSError:  # the parent is gone; the stage continues at the next run from what it last saved
            os._exit(1)

    with contextlib.suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            stages = pipe.recv()
            reports = attempt_all(stages, store, found, options, progress)
            if os.getpid() != own:  # a part forked, and its child came back as well
                os._exit(1)
            if threading.active_count() > threads or _children():
                pipe.send(LEAVING)
            pipe.send(reports)
            give_back()


def _settle(folder: str, options: Options, environment: dict[str, str]) -> None:
    """Makes a new process one that may be killed, with all that it starts, without harm to anything else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.setpgid(0, 0)
    os.dup2(2, 1)  # what parts print must not mix with a board on stdout
    reuse_freed()
    set_threads(options.threads)
    os.environ.clear()
    os.environ.update(environment)  # the server's is that of the time it was started
    provenance.folder = os.getcwd()
    os.chdir(tempfile.mkdtemp(dir=folder))
    with contextlib.suppress(OSError):  # where memory runs out, it is for the sake of a worker
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if options.device == "cpu":  # drivers of GPUs reserve addresses without end
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        resource.setrlimit(resource.RLIMIT_DATA, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))


def _children() -> bool:
    """Whether this process has children that still run; those that ended are let go."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def set_threads(threads: int | None) -> None:
    """Limits torch's threads in this process."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
