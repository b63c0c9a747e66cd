"""One attack against one model on one split, outside of any suite: what `accuracy` measures, every sample's outcome, what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from rtbench.builtin.probes.accuracy import accuracy
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.engine.shares import shared
from rtbench.evaluation.guard import frozen, own_randomness
from rtbench.evaluation.judge import Outcome
from rtbench.parts.kinds import Measure
from rtbench.parts.meter import metered


class Verdict(NamedTuple):
    """measure: as the probe returns it. outcome: what the judge saw. counts: forwards and gradients, the judge's included. threads: of each
    process that the attack ran in.
    """

    measure: Measure
    outcome: Outcome
    counts: dict[str, int]
    seconds: float
    threads: int


def verdict(
    binder: Binder, probe: dict[str, Any], model: nn.Module, progress: Callable[[int, int], None] | None = None, workers: int = 1
) -> Verdict:
    """Runs a resolved `accuracy` probe on the binder's data; the model and the global generators are as before afterwards.

    progress: called with steps done and steps at most. workers: processes that a native attack may run in, on a CPU. Raises AttackFailure.
    """
    part, seen = probe["knobs"]["attack"], list[Outcome]()
    judged = shared(binder.judged(part), model, binder.catalogue.files, part, workers)

    def attack(*args: Any, **given: Any) -> Outcome:
        seen.append(judged(*args, **given))
        return seen[0]

    counts = {"forwards": 0, "gradients": 0}
    started = time.monotonic()
    with own_randomness(binder.seed), frozen(model), metered(model, counts):
        measure = accuracy(model, binder.data, Loop(progress=progress, counts=counts), **{**probe["knobs"], "attack": attack})
    return Verdict(measure, seen[0], counts, time.monotonic() - started, torch.get_num_threads() if judged.elsewhere is None else 1)


def nonzero(model: nn.Module) -> float | None:
    """The share of all parameters that are not 0, None where there are none."""
    total = sum(p.numel() for p in model.parameters())
    return sum(int(p.count_nonzero()) for p in model.parameters()) / total if total else None
