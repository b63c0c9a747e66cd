"""Learning-rate schedules as a pure function of the step: nothing to save, nothing to get wrong after a resume."""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import lru_cache
from typing import Literal

from rtbench.parts.amounts import exact

Schedule = Literal["constant", "cosine", "step", "milestones", "one-cycle"]
Warmup = Literal["linear", "epochs", "constant"]


def scale(
    schedule: str, step: int, steps: int, per_epoch: int, drops: list[float], milestones: list[int], gamma: float, peak: float
) -> float:
    """The factor on the base learning rate before step `step` of `steps`, warm-up aside.

    cosine: half a period, 0 after the last step (Loshchilov & Hutter 2017, arXiv:1608.03983). step: times gamma at each fraction of
    all steps in `drops`. milestones: times gamma at each epoch listed. one-cycle: linear to 1 at the fraction `peak` of all steps,
    then linear to 0 (Smith & Topin 2018, arXiv:1708.07120).
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    if schedule == "step":
        return gamma ** bisect_right(_places(tuple(drops), steps), step)
    if schedule == "milestones":
        return gamma ** bisect_right(sorted(milestones), step // per_epoch)
    if schedule == "one-cycle":
        top = peak * steps
        return (step + 1) / (top + 1) if step < top else (steps - step) / max(steps - top, 1)
    return 1.0


@lru_cache(maxsize=8)
def _places(drops: tuple[float, ...], steps: int) -> list[int]:
    """The steps at these fractions of all steps, rounded up: 0.07 of 100 is step 7, which is 7.000000000000001 in floats."""
    return sorted(math.ceil(exact(drop) * steps) for drop in drops)


def warmed(lr: float, step: int, per_epoch: int, epochs: float, start: float, kind: str) -> float:
    """The learning rate with warm-up over the first `epochs` epochs.

    linear: per step from `start` to `lr`. epochs: the same in one stair per epoch. constant: `start` throughout.
    """
    length = round(epochs * per_epoch)
    if step >= length:
        return lr
    if kind == "constant":
        return start
    share = (step // per_epoch) / max(epochs, 1.0) if kind == "epochs" else step / length
    return start + (lr - start) * share
