"""How fast training got where it got: the early-stop epoch, what was measured there, and epochs to reach given values."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from rtbench.errors import UserError
from rtbench.parts.kinds import Measure, declare
from rtbench.parts.knobs import Range

Levels = dict[str, Annotated[float, Range("(-inf, inf)")]]
NOT_ABOUT = ("epoch", "stopped", "collapsed")
"""What trainers log about training itself."""
PLACE = re.compile(r"(step|epoch)-(\d+)")


def check(knobs: dict[str, Any]) -> None:
    for place in knobs["after"]:
        if not PLACE.fullmatch(place):
            raise ValueError(f'after: "{place}" is not of the form "step-500" or "epoch-2"')


@declare(check=check)
def convergence(
    history: tuple[dict[str, Any], ...], *,
    by: str = "loss",
    best: Literal["max", "min"] | None = None,
    reach: Levels = {},  # noqa: B006
    after: tuple[str, ...] = (),
) -> Measure:  # fmt: skip
    """The epoch at which `by` was best in the last training, the earlier one of equals: where early stopping would have stopped.

    "step" is its step and "at.NAME" what else was measured there. "reached.NAME" is the first epoch at which NAME was at its level of
    `reach` or above, nothing where it never was. "epoch-3.NAME" is NAME at a place of `after`, nothing where none was measured just
    there. Epochs may be fractions. All is read from what the trainer logged, so its `probes` and `every` say how finely it can be told.
    Flags "catastrophic-overfitting" where the guard of any training that led here saw one.

    by: the trainer's "loss", or one of its `probes` as it was measured on the way
    best: whether the largest or the smallest value is best; if not given, the smallest of a loss and the largest of all else
    reach: names of numbers measured on the way, losses aside, with the values to reach
    after: places of training, "step-500" or "epoch-2", at which everything that was measured is told
    """
    found, epochs = curves(history)
    curve = named(found, by, "by")
    valued = [(step, value) for step, value in curve.items() if value is not None and math.isfinite(value)]
    least = _is_loss(history, by) if best is None else best == "min"
    stop = (min if least else max)(valued, key=lambda entry: entry[1])[0] if valued else None
    numbers: dict[str, float | None] = {"": None if stop is None else epochs.get(stop), "step": None if stop is None else float(stop)}
    told = {name: values for name, values in found.items() if name not in NOT_ABOUT}
    numbers |= {f"at.{name}": values.get(stop) if stop is not None else None for name, values in told.items()}
    for name, level in reach.items():
        if _is_loss(history, name):
            raise UserError(f'reach: "{name}" is a loss, which falls; reach tells when a number was as high as a level')
        there = (epochs.get(step) for step, value in named(found, name, "reach").items() if value is not None and value >= level)
        numbers[f"reached.{name}"] = next(there, None)
    for place in after:
        unit, _, number = place.partition("-")
        at = int(number) if unit == "step" else next((step for step, done in epochs.items() if done == int(number)), -1)
        numbers |= {f"{place}.{name}": values.get(at) for name, values in told.items()}
    collapsed = any(name == "collapsed" for stage in history for _, name, _ in stage["records"])
    return Measure(numbers, flags=("catastrophic-overfitting",) if collapsed else ())


def curves(history: tuple[dict[str, Any], ...]) -> tuple[dict[str, dict[int, float | None]], dict[int, float]]:
    """What the last training logged, value by step and name, and the epochs done by step. UserError where nothing was trained."""
    trained = [stage for stage in history if stage["verb"] == "train"]
    if not trained:
        raise UserError("nothing was trained up to here; measure convergence after a training, with at")
    found: dict[str, dict[int, float | None]] = {}
    for step, name, value in trained[-1]["records"]:
        found.setdefault(name, {})[step] = value
    epochs = {step: done for step, done in found.get("epoch", {}).items() if done is not None}
    if not epochs:
        raise UserError(f'trainer "{trained[-1]["part"]["use"]}" logs no "epoch", so nothing can be said about its epochs')
    return found, epochs


def _is_loss(history: tuple[dict[str, Any], ...], by: str) -> bool:
    """Whether it is the trainer's own loss, or its probe of that name is a `loss`."""
    trained = [stage for stage in history if stage["verb"] == "train"][-1]
    probes = trained["part"].get("knobs", {}).get("probes")
    probe = probes.get(by) if isinstance(probes, dict) else None
    return by == "loss" or (isinstance(probe, dict) and probe.get("use") == "loss")


def named(found: dict[str, dict[int, float | None]], name: str, knob: str) -> dict[int, float | None]:
    """The curve of that name; UserError where the trainer logged none."""
    if name not in found:
        raise UserError(f'{knob}: "{name}" is nothing that training logged; there is {", ".join(sorted(found))}')
    return found[name]
