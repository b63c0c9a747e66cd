"""Carlini & Wagner's attack: l2 in tanh space with a search over the constant, linf by ascent of their margin.

Source: Carlini & Wagner 2017, arXiv:1608.04644, section 6.1 (l2). Under linf the field reports as C&W projected gradient descent on
the margin loss (Madry et al. 2018, arXiv:1706.06083, section 5.1), not the paper's own section 6.3, and so does this.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

import torch
from torch import Tensor

from rtbench.builtin.attacks.losses import margin
from rtbench.errors import UserError
from rtbench.parts.kinds import declare
from rtbench.parts.knobs import Range
from rtbench.parts.slots import Method, Native, Slots, unit
from rtbench.parts.threats import Threat, lengths

NEAR = 1 + 1e-5
INWARDS = 1 - 1e-6
"""What keeps tanh's argument finite at black and white pixels; the paper's own code has 0.999999 as well."""
BETAS, STABLE = (0.9, 0.999), 1e-8
"""Adam's, of Kingma & Ba 2015, arXiv:1412.6980."""
SEARCH = 9
OWN = {"l2": ("search", "confidence", "rate", "constant"), "linf": ("step", "restarts")}
"""Knobs of one norm alone."""
Count = Annotated[int, Range("[1, inf)")]


def check(knobs: dict[str, Any]) -> None:
    norm = knobs["norm"]
    for other, own in OWN.items():
        given = [name for name in own if knobs[name] is not None and other != norm]
        if given:
            raise ValueError(f'the knob "{given[0]}" is of C&W under {other}, not {norm}')


def passes(knobs: dict[str, Any], sizes: dict[str, int], nested: Any) -> tuple[float, float]:
    if knobs["norm"] == "linf":
        return ((knobs["steps"] + 1) * (knobs["restarts"] or 1),) * 2
    return (knobs["steps"] * (knobs["search"] or SEARCH),) * 2


@declare(norms=("linf", "l2"), check=check, passes=passes, minimal=("l2",))
def cw(
    threat: Threat, *,
    steps: Count = 200,
    search: Annotated[int | None, Range("[1, inf)")] = None,
    confidence: Annotated[float | None, Range("[0, inf)")] = None,
    rate: Annotated[float | None, Range("(0, inf)")] = None,
    constant: Annotated[float | None, Range("(0, inf)")] = None,
    step: Annotated[Fraction | None, Range("(0, inf)")] = None,
    restarts: Annotated[int | None, Range("[1, inf)")] = None,
) -> Native:  # fmt: skip
    """Carlini & Wagner: minimal-norm under l2, by margin loss inside the ball under linf.

    steps: Adam steps per constant under l2, sign steps per restart under linf
    search: l2 only: constants tried, by tenfold growth until one succeeds, then by bisection; 9 if left out
    confidence: l2 only: by how much the other logit has to lead; 0 if left out
    rate: l2 only: Adam's learning rate in tanh space; 0.1 if left out
    constant: l2 only: the first weight of the margin against the squared distance; 0.001 if left out
    step: linf only: step size in input units; 2.5 eps / steps if left out
    restarts: linf only: random starts; 1 if left out
    """
    if threat.norm == "linf":
        size = threat.eps * Fraction(5, 2) / steps if step is None else step
        return Native((_ascent(steps, float(size), restarts or 1),))
    if threat.norm != "l2":
        raise UserError(f'cw takes linf and l2, not "{threat.norm}"')
    return Native((_search(steps, search or SEARCH, confidence or 0.0, rate or 0.1, constant or 1e-3),))


def _ascent(steps: int, size: float, restarts: int) -> Method:
    """Sign steps that raise the margin, from a uniform start; the last one only asks."""

    def begin(slots: Slots, rows: Tensor) -> None:
        start = unit(slots.bits(rows, slots.x[0].numel())).mul_(2).sub_(1).mul_(slots.eps).view_as(slots.x[rows])
        slots.put("at", rows, start.add_(slots.x[rows]).clamp_(slots.lower[rows], slots.upper[rows]))

    def step(slots: Slots) -> None:
        slope = slots.gradient(slots.state["at"], lambda logits: margin(logits, slots.y))[2]
        slots.clip_(slots.state["at"].add_(slope.sign_(), alpha=size))

    return Method("cw", begin, step, steps + 1, restarts=restarts, gradients=1)


def _search(steps: int, search: int, confidence: float, rate: float, constant: float) -> Method:
    def begin(slots: Slots, rows: Tensor) -> None:
        slots.put("start", rows, torch.atanh((2 * slots.x[rows] - 1) * INWARDS))
        for name in ("w", "mean", "square"):
            slots.put(name, rows, torch.zeros_like(slots.x[rows]))
        slots.put("constant", rows, constant)
        slots.put("low", rows, 0.0)
        slots.put("high", rows, torch.inf)
        slots.put("hit", rows, 0.0)

    def step(slots: Slots) -> None:
        turn = slots.age % steps
        _renew(slots, turn == 0)
        _descend(slots, turn, confidence, rate)

    return Method("cw", begin, step, steps * search, gradients=1)


def _renew(slots: Slots, first: Tensor) -> None:
    """Starts over, in rows at the first step of a constant, bool (B,), with the next constant."""
    if slots.x.device.type == "cpu" and not bool(first.any()):
        return
    state = slots.state
    hit, later = state["hit"] > 0, first & (slots.age > 0)
    state["high"] = torch.where(later & hit, torch.minimum(state["high"], state["constant"]), state["high"])
    state["low"] = torch.where(later & ~hit, torch.maximum(state["low"], state["constant"]), state["low"])
    following = torch.where(state["high"] < torch.inf, (state["low"] + state["high"]) / 2, state["constant"] * 10)
    state["constant"] = torch.where(later, following, state["constant"])
    state["hit"] = state["hit"].masked_fill(first, 0)
    slots.keep("w", first, state["start"])
    for name in ("mean", "square"):
        state[name] = state[name].masked_fill(slots.column(first), 0)


def _descend(slots: Slots, turn: Tensor, confidence: float, rate: float) -> None:
    """One step of Adam on |x' - x|^2 + constant * max(label's lead, -confidence), x' = (tanh w + 1) / 2; turn: steps before, (B,)."""
    state = slots.state
    bent = state["w"].tanh()
    at = bent.add(1).div_(2)
    change = at - slots.x

    def weighed(logits: Tensor) -> Tensor:
        return (-margin(logits, slots.y)).clamp_min(-confidence) * state["constant"]

    logits, _, slope = slots.gradient(at, weighed, lengths(change, "l2").flatten() <= slots.eps * NEAR)
    state["hit"] = torch.maximum(state["hit"], (margin(logits, slots.y) > confidence).float())
    slope = (slope + 2 * change).mul_(1 - bent * bent).div_(2)
    state["mean"].lerp_(slope, 1 - BETAS[0])
    state["square"].lerp_(slope * slope, 1 - BETAS[1])
    mean, square = (state[name] / slots.column(1 - beta ** (turn + 1)) for name, beta in zip(("mean", "square"), BETAS, strict=True))
    state["w"] = state["w"] - rate * mean / (square.sqrt() + STABLE)
