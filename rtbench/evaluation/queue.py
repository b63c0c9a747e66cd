"""Which tries of a method come next, and what a slot holds when one begins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rtbench.parts.slots import Method, trial_keys
from rtbench.parts.threats import Threat, bounds

Source = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""x float32 (m, c, h, w), y and ids int64 (m,) of the samples at these positions."""


def upcoming(cursor: int, count: int, todo: Tensor, tries: int, alive: Tensor) -> tuple[int, Tensor, Tensor]:
    """(where to go on; samples and number of the try, int64 (m,)) of the next `count` tries of samples not broken yet, or all there are.

    They come try by try over all samples `todo`, int64 (n,). alive: bool (all samples,).
    """
    total, found = len(todo) * tries, [torch.zeros(0, dtype=torch.int64)]
    while count > 0 and cursor < total:
        jobs = torch.arange(cursor, min(cursor + count, total))
        cursor += len(jobs)
        jobs = jobs[alive[todo[jobs % len(todo)]]]
        found.append(jobs)
        count -= len(jobs)
    jobs = torch.cat(found)
    return cursor, todo[jobs % max(1, len(todo))], jobs // max(1, len(todo))


def begun(source: Source, samples: Tensor, trial: Tensor, method: Method, ranks: Tensor, seed: int, threat: Threat) -> dict[str, Tensor]:
    """The fields of `Slots` for these tries. ranks: (all samples, ranks) classes by clean logit, likeliest first."""
    x, y, ids = source(samples)
    targets = max(1, method.targets)
    values = {
        "x": x, "y": y, "age": torch.zeros_like(y), "restart": (trial // targets).to(y.device),
        "target": ranks[samples, trial % targets + 1].long().to(y.device) if method.targets else y,
        "key": trial_keys(seed, method.name, ids, trial.to(ids.device)),
    }  # fmt: skip
    if threat.norm == "linf":
        values["lower"], values["upper"] = bounds(x, threat.eps)
    return values
