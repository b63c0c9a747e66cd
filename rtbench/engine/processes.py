"""Starting processes and telling how they ended, for workers and for shares of one attack."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any

from rtbench.plugins import BUILTINS


def server() -> Any:
    """The context that processes are started from: forks of one server, which imports what they need once, so that each costs little."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["rtbench.running.workers", "rtbench.engine.shares", "torch._dynamo", *(f"rtbench.builtin.{name}" for name in BUILTINS)]
    )
    return context


def start_server() -> None:
    """Lets the server import what processes need while this one imports the same."""
    server()
    with without_main():
        forkserver.ensure_running()


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """A new process needs nothing of the caller's script, and importing it again would run it again where it lacks a main guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"
    return f"exited with code {code}"


def cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(workers: int) -> int:
    """Threads of each of so many processes: their share of the cores, or what OMP_NUM_THREADS allows if that is less."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores() // workers, int(allowed) if allowed.isdigit() and int(allowed) else cores()))
