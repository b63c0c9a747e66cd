"""A native attack in several processes: samples are dealt out like cards, and what was found is put together again.

On a processor, networks gain more from processes than from threads, small ones most. A sample's verdict depends on none that shares its
batch, so it is the same bit for bit as in one process of as many threads as each of these has.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from torch import nn

from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.engine.memory import reuse_freed
from rtbench.engine.processes import how_it_died, server, without_main
from rtbench.errors import UserError
from rtbench.evaluation.judge import AttackFailure, Judged
from rtbench.evaluation.outcome import Outcome
from rtbench.parts.meter import metered
from rtbench.plugins import catalogue

FEWEST = 32
"""Samples that are worth a process."""


class Task(NamedTuple):
    """The same for every process. files: of plugins. attack: the resolved part. model: pickled."""

    files: tuple[str, ...]
    attack: dict[str, Any]
    seed: int
    witnesses: bool
    threads: int
    model: bytes


def shared(judged: Judged, model: nn.Module, files: tuple[str, ...], attack: dict[str, Any], workers: int, threads: int = 1) -> Judged:
    """The same attack, its samples attacked in up to `workers` processes of `threads` threads; one that is not native as it is.

    UserError where the model cannot be sent to another process.
    """
    if judged.native is None or workers == 1 or any(tensor.device.type != "cpu" for tensor in model.parameters()):
        return judged
    try:
        task = Task(files, attack, judged.seed, judged.witnesses, threads, pickle.dumps(model))
    except Exception as error:
        raise UserError(f"model: it cannot be sent to another process ({error}); use workers=1") from error

    def elsewhere(split: Any, loop: Loop, batch: int, keep: bool) -> list[Outcome]:
        count = max(1, min(workers, len(split) // FEWEST))
        shares = [split.subset(torch.arange(number, len(split), count)) for number in range(count)]
        return _attacked(task, shares, loop, batch, keep)

    return replace(judged, elsewhere=elsewhere)


def _attacked(task: Task, shares: list[Any], loop: Loop, batch: int, keep: bool) -> list[Outcome]:
    """The outcome of every share, each in a process of its own."""
    context = server()
    with contextlib.ExitStack() as ends:
        pipes, processes = [], []
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, task, pickle.dumps(share), batch, keep), daemon=True)
            with without_main():
                process.start()
            ends.callback(process.join)
            ends.callback(process.kill)
            theirs.close()
            pipes.append(ends.enter_context(ours))
            processes.append(process)
        return _gathered(pipes, processes, loop)


def _gathered(pipes: list[Connection], processes: list[Any], loop: Loop) -> list[Outcome]:
    """Listens until all are done, and passes on their progress."""
    found: dict[int, Outcome] = {}
    steps = dict.fromkeys(range(len(pipes)), (0, 1))
    while len(found) < len(pipes):
        for pipe in wait([pipe for number, pipe in enumerate(pipes) if number not in found]):
            number = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                word, value = pickle.loads(pipes[number].recv_bytes())
            except (EOFError, OSError):
                processes[number].join(5)
                raise AttackFailure(f"one of the attack's processes {how_it_died(processes[number].exitcode)}") from None
            if word == "error":
                raise UserError(value)
            if word == "failed":
                raise AttackFailure(value[0]) from (UserError(value[0]) if value[1] else None)
            if word == "steps":
                steps[number] = value
                if loop.progress is not None:
                    loop.progress(*map(sum, zip(*steps.values(), strict=True)))
            else:
                found[number], counts = value
                for name, passes in counts.items():
                    loop.counts[name] = loop.counts.get(name, 0) + passes
    return [found[number] for number in range(len(pipes))]


def _serve(pipe: Connection, task: Task, share: bytes, batch: int, keep: bool) -> None:
    """The life of one process: it says steps done and in all, and at last its outcome and the passes it took, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    reuse_freed()
    torch.set_num_threads(task.threads)

    def say(word: str, value: Any) -> None:
        pipe.send_bytes(pickle.dumps((word, value)))

    try:
        say("done", _outcome(task, share, batch, keep, lambda done, total: say("steps", (done, total))))
    except AttackFailure as error:
        say("failed", (str(error), isinstance(error.__cause__, UserError)))
    except UserError as error:
        say("error", str(error))


def _outcome(task: Task, share: bytes, batch: int, keep: bool, progress: Callable[[int, int], None]) -> tuple[Outcome, dict[str, int]]:
    found = catalogue(task.files)
    try:
        model = pickle.loads(task.model)
    except Exception as error:
        raise UserError(f"model: another process cannot rebuild it ({error}); define its class in a module, or use workers=1") from error
    split = pickle.loads(share)
    judged = Binder(found, task.seed, torch.Generator(), keep=task.witnesses).judged(task.attack)
    counts: dict[str, int] = {}
    with metered(model, counts):
        outcome = judged.attacked(model, split, torch.arange(len(split)), Loop(progress=progress), batch, keep)
    return outcome, counts
