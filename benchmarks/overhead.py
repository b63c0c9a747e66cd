"""Harness overhead of a suite, and what two workers gain.

    python benchmarks/overhead.py [--suite quick] [--set A.B=C ...]

Runs the suite three times into fresh stores: in this process with one thread, with one worker and with two workers of one thread each.
Overhead is wall time minus time inside parts, as a share of wall time. Then runs the finished suite again and prints how long that took.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from machine import line
from rtbench.commands import api
from rtbench.plugins import Catalogue, Part

OUTER = ("dataset", "architecture", "trainer", "pruner", "probe")


class Clock:
    """Time inside the outermost part that runs."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    def watch(self, found: Catalogue) -> None:
        for name, part in found.parts.items():
            if part.kind in OUTER:
                found.parts[name] = Part(part.kind, part.name, self.timed(part.function), part.owner, part.owner_version)

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **knobs: Any) -> Any:
            self.depth += 1
            started = time.perf_counter()
            try:
                return function(*args, **knobs)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += time.perf_counter() - started

        return call


def run(what: api.Study, store: str, workers: int, isolate: bool = False) -> float:
    started = time.perf_counter()
    board = api.run_study(what, store, api.How(workers, isolate, threads=1))
    assert board.tally is not None and not board.tally.failed
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--set", action="append", default=[])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(line())
    clock = Clock()
    what = api.study(chosen.suite, set=chosen.set)
    watched = api.study(chosen.suite, set=chosen.set)
    clock.watch(watched.catalogue)
    clock.seconds = 0.0
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b, tempfile.TemporaryDirectory() as c:
        wall = run(watched, a, 1)
        print(f"{chosen.suite}: {len(what.plan.stages)} stages, {wall:.1f} s in one process, {clock.seconds:.1f} s inside parts, "
              f"overhead {1 - clock.seconds / wall:.1%}")  # fmt: skip
        one, two = run(what, b, 1, isolate=True), run(what, c, 2)
        print(f"one worker {one:.1f} s, two workers {two:.1f} s: {one / two:.2f} times as fast")
        print(f"run again, nothing to do: {run(what, a, 1):.2f} s")


if __name__ == "__main__":
    main()
