"""Auto-PGD: steps that halve themselves where the loss stops rising. Source: Croce & Hein 2020, arXiv:2003.01690, algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rtbench.builtin.attacks.losses import dlr
from rtbench.parts.slots import Method, Slots, normal, unit
from rtbench.parts.threats import TINY, lengths

LossName = Literal["ce", "dlr", "dlr-targeted"]
MOMENTUM, RISING = 0.75, 0.75
"""Weight of the new step against the last one; share of steps that have to raise the loss."""


def apgd(name: str, loss: LossName, steps: int = 100, restarts: int = 1, targets: int = 0, average: int = 1) -> Method:
    """The attack as slots. targets: likeliest wrong classes for "dlr-targeted". average: passes a gradient is averaged over."""
    due, span = checkpoints(steps)
    losses = LOSSES[loss]

    def step(slots: Slots) -> None:
        f, slope = _asked(slots, losses, average)
        if loss != "ce":  # a sure network's cross-entropy has no slope in float32, and that is no defence
            _blind(slots, slope)
        _remember(slots, f, slope)
        slope = _checkpoint(slots, due, span, slope)
        _move(slots, slope)

    return Method(name, _begin, step, steps + 1, targets, restarts, average, average)


def checkpoints(steps: int) -> tuple[list[bool], list[int]]:
    """(whether step k is a checkpoint, steps since the one before it), k = 0..steps: at 0.22, then 0.03 sooner each time, 0.06 at least."""
    due, span = [False] * (steps + 1), [0] * (steps + 1)
    before, last, here = 0.0, 0, 0.22
    while math.ceil(here * steps - 1e-9) <= steps and here <= 1:
        k = math.ceil(here * steps - 1e-9)
        if k > last:
            due[k], span[k], last = True, k - last, k
        before, here = here, here + max(here - before - 0.03, 0.06)
    return due, span


def ce(slots: Slots, logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, slots.y, reduction="none")


def targeted(slots: Slots, logits: Tensor) -> Tensor:
    """The difference of target and label over the first less the mean of the third and fourth: blind to scale and shift."""
    ranked = logits.topk(4, dim=1).values
    apart = logits.gather(1, slots.target[:, None]) - logits.gather(1, slots.y[:, None])
    return apart.squeeze(1) / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Callable[[Slots, Tensor], Tensor]] = {
    "ce": ce, "dlr": lambda slots, logits: dlr(logits, slots.y), "dlr-targeted": targeted,
}  # fmt: skip


def _begin(slots: Slots, rows: Tensor) -> None:
    x = slots.x[rows]
    start = x + _start(slots, rows).view_as(x)
    start = start.clamp_(slots.lower[rows], slots.upper[rows]) if slots.threat.norm == "linf" else start.clamp_(0, 1)
    for name in ("at", "before", "best"):
        slots.put(name, rows, start)
    slots.put("best_slope", rows, torch.zeros_like(start))
    slots.put("size", rows, 2 * slots.eps)
    for name in ("height", "best_height", "checked_height"):
        slots.put(name, rows, -math.inf)
    slots.put("rises", rows, 0.0)
    slots.put("halved", rows, torch.ones(len(rows), dtype=torch.bool, device=x.device))


def _start(slots: Slots, rows: Tensor) -> Tensor:
    """A random direction as far as the ball reaches, (m, d)."""
    d = slots.x[0].numel()
    bits = slots.bits(rows, d)
    if slots.threat.norm == "linf":
        return unit(bits).mul_(2).sub_(1).mul_(slots.eps)
    direction = normal(bits)
    return direction.mul_(slots.eps * (1 - 1e-6)).div_(lengths(direction, "l2"))


def _asked(slots: Slots, losses: Callable[[Slots, Tensor], Tensor], average: int) -> tuple[Tensor, Tensor]:
    at = slots.state["at"]
    if average == 1:
        return slots.gradient(at, lambda logits: losses(slots, logits))[1:]
    nobody = torch.zeros_like(slots.y, dtype=torch.bool)  # one pass of a randomised network says little
    asked = [slots.gradient(at, lambda logits: losses(slots, logits), nobody) for _ in range(average)]
    logits, f, slope = (torch.stack(parts).mean(0) for parts in zip(*asked, strict=True))
    slots.notice(slots, at, logits, None)
    return f, slope


def _blind(slots: Slots, slope: Tensor) -> None:
    """Flags tries whose first gradient is 0 throughout."""
    first = slots.age == 0
    if slope.device.type != "cpu" or bool(first.any()):
        slots.flag("zero-gradient", first & (slope.flatten(1).abs().amax(1) == 0))


def _remember(slots: Slots, f: Tensor, slope: Tensor) -> None:
    """Keeps the point of highest loss so far, with its gradient."""
    state = slots.state
    better = f > state["best_height"]
    for name, values in (("best", state["at"]), ("best_slope", slope), ("best_height", f)):
        slots.keep(name, better, values)
    state["rises"] += (f > state["height"]) & (slots.age > 0)
    state["height"] = f
    torch.where(slots.age == 0, f, state["checked_height"], out=state["checked_height"])


def _checkpoint(slots: Slots, due: list[bool], span: list[int], slope: Tensor) -> Tensor:
    """At a checkpoint, halves the step and goes back to the best point where too few steps rose, or nothing was gained since."""
    here = _table(slots, "due", due)
    if here.device.type == "cpu" and not bool(here.any()):
        return slope
    state = slots.state
    slow = state["rises"] <= RISING * _table(slots, "span", span)
    stuck = ~state["halved"] & (state["best_height"] <= state["checked_height"])
    cut = here & (slow | stuck)
    state["size"] = torch.where(cut, state["size"] / 2, state["size"])
    state["halved"] = torch.where(here, cut, state["halved"])
    state["checked_height"] = torch.where(here, state["best_height"], state["checked_height"])
    state["rises"] = state["rises"].masked_fill(here, 0)
    slots.keep("at", cut, state["best"])
    return torch.where(slots.column(cut), state["best_slope"], slope)


_tables: dict[tuple[object, ...], Tensor] = {}


def _table(slots: Slots, name: str, values: list[bool] | list[int]) -> Tensor:
    """values[age] of every slot."""
    name_ = (name, len(values), slots.x.device)
    if name_ not in _tables:
        _tables[name_] = torch.tensor(values, device=slots.x.device)
    return _tables[name_][slots.age]


def _move(slots: Slots, slope: Tensor) -> None:
    """One steepest step, and the momentum of the step before."""
    at, before = slots.state["at"], slots.state["before"]
    size = slots.column(slots.state["size"])
    if slots.threat.norm == "linf":
        direction = slope.sign_()
    else:
        direction = slope / lengths(slope, "linf").clamp_(min=TINY)
        direction.div_(lengths(direction, "l2").clamp_(min=TINY))
    moved = slots.clip_(torch.addcmul(at, size, direction, out=direction))
    first = slots.column((slots.age == 0).float())
    ahead = moved.sub_(at).mul_(MOMENTUM + (1 - MOMENTUM) * first)
    ahead.add_(at, alpha=2 - MOMENTUM).sub_(before, alpha=1 - MOMENTUM)
    slots.state["before"] = at
    slots.state["at"] = slots.clip_(ahead)
