"""Many models of one kind: ours in several processes side by side, pyautoattack on one after the other."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from networks import CHILDREN, images, network
from timing import Entry, Log, ours, theirs

from rtbench.data.splits import Data, take
from rtbench.engine.memory import reuse_freed

_ready: dict[str, Any] = {}


def repeat(log: Log, number: int, data: Data, chosen: argparse.Namespace) -> None:
    """One of every measurement over the parent and all children; ours before and after theirs, for the machine's speed drifts meanwhile."""
    names = ["", *CHILDREN]
    models = {name: network(chosen, data, name, chosen.device) for name in names}
    before = log.once("native before", number, lambda: _side_by_side(names, chosen))
    if chosen.bf16:
        log.once("bf16", number, lambda: _side_by_side(names, chosen, "bf16", before["robust"]))
    x, y = take(data.test, torch.arange(chosen.samples))
    for batch in chosen.theirs:
        each = [log.once(f"model {name or 'dense'} {batch}", number, lambda m=m, batch=batch: theirs(m, x, y, chosen, batch, number))  # type: ignore[misc]
                for name, m in models.items()]  # fmt: skip
        log.once(f"official {batch}", number, lambda each=each: {"seconds": sum(entry["seconds"] for entry in each)})  # type: ignore[misc]
    after = log.once("native after", number, lambda: _side_by_side(names, chosen))
    mean = (before["seconds"] + after["seconds"]) / 2
    log.once("native", number, lambda: {"seconds": mean, "accuracy": before["accuracy"], "robust": before["robust"]})


def _side_by_side(names: list[str], chosen: argparse.Namespace, precision: str = "exact", exact: str = "") -> Entry:
    """Workers that have loaded everything before the clock starts, as those of a suite have. exact: bits of float32, to count misses."""
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(chosen.workers + 1)
    with ProcessPoolExecutor(chosen.workers, spawn, _load, (chosen, names, gate)) as pool:
        tasks = [pool.submit(_attack, name, precision) for name in names]
        gate.wait()
        started = time.perf_counter()
        found = [task.result() for task in tasks]
        seconds = time.perf_counter() - started
    robust = "".join(entry["robust"] for entry in found)
    slowest = max(entry["seconds"] for entry in found)
    missed = {"missed": list(zip(exact, robust, strict=True)).count(("0", "1"))} if exact else {}
    return {"seconds": seconds, "slowest": round(slowest, 2), "accuracy": robust.count("1") / len(robust), **missed, "robust": robust}


def _load(chosen: argparse.Namespace, names: list[str], gate: Any) -> None:
    reuse_freed()
    torch.set_num_threads(1)
    data = images(chosen, chosen.device)
    x, y = take(data.test, torch.arange(chosen.samples))
    _ready.update(chosen=chosen, x=x, y=y, models={name: network(chosen, data, name, chosen.device) for name in names})
    gate.wait()


def _attack(name: str, precision: str) -> Entry:
    return ours(_ready["models"][name], _ready["x"], _ready["y"], _ready["chosen"], precision)
