"""Fast minimum-norm attack. Source: Pintor, Roli, Brendel & Biggio 2021, arXiv:2102.12827, algorithm 1."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from rtbench.builtin.attacks.losses import margin
from rtbench.errors import UserError
from rtbench.parts.kinds import declare
from rtbench.parts.knobs import Range
from rtbench.parts.slots import Method, Native, Slots
from rtbench.parts.threats import TINY, Threat, lengths, passable
from rtbench.parts.threats import step as steepest

NEAR = 1 + 1e-5
FINAL = 0.01
"""What is left of the step size in the end."""
SIZES = {"linf": 10.0, "l2": 1.0}
DUAL = {"linf": "l1", "l2": "l2"}


def passes(knobs: dict[str, Any], sizes: dict[str, int], nested: Any) -> tuple[float, float]:
    return knobs["steps"], knobs["steps"]


@declare(norms=("linf", "l2"), passes=passes, minimal=("linf", "l2"))
def fmn(
    threat: Threat, *,
    steps: Annotated[int, Range("[1, inf)")] = 1000,
    step: Annotated[float | None, Range("(0, inf)")] = None,
    gamma: Annotated[float, Range("(0, 1)")] = 0.05,
    gamma_final: Annotated[float, Range("(0, 1)")] = 0.001,
) -> Native:  # fmt: skip
    """FMN, minimal-norm under linf or l2: a gradient step, then onto a ball that grows until the class changes and shrinks after that.

    steps: gradient steps from the image
    step: l2 length of the first step in input units, annealed by a cosine to a hundredth; 10 for linf, 1 for l2 if left out
    gamma: the share by which the ball grows or shrinks at first
    gamma_final: that share in the end, annealed likewise
    """
    if threat.norm not in SIZES:
        raise UserError(f'fmn takes linf and l2, not "{threat.norm}"')
    size = SIZES[threat.norm] if step is None else step

    def once(slots: Slots) -> None:
        done = slots.age / max(1, steps - 1)
        down = (1 + (done * math.pi).cos()) / 2  # from 1 to 0
        _step(slots, size * (FINAL + (1 - FINAL) * down), gamma_final + (gamma - gamma_final) * down)

    return Native((Method("fmn", _begin, once, steps, gradients=1),))


def _begin(slots: Slots, rows: Tensor) -> None:
    slots.put("at", rows, slots.x[rows])
    slots.put("far", rows, 0.0)
    for name in ("reach", "nearest"):
        slots.put(name, rows, torch.inf)


def _step(slots: Slots, size: Tensor, share: Tensor) -> None:
    """size: of the step, (B,). share: by which the ball `reach` changes, (B,)."""
    state, norm = slots.state, slots.threat.norm
    logits, lead, slope = slots.gradient(state["at"], lambda z: margin(z, slots.y), state["far"] <= slots.eps * NEAR)
    slope = passable(slope, state["at"])  # the paper clips only; where many pixels are black or white it then never gets across
    wrong, found = logits.argmax(1) != slots.y, state["nearest"] < torch.inf
    state["nearest"] = torch.where(wrong, torch.minimum(state["nearest"], state["far"]), state["nearest"])
    linear = state["far"] - lead / lengths(slope, DUAL[norm]).flatten().clamp_min(TINY)  # where the boundary would be
    outwards = torch.where(found, state["reach"], linear) * (1 + share)  # the paper goes to the very boundary, which rounding may miss
    inwards = torch.minimum(state["reach"] * (1 - share), state["nearest"])
    state["reach"] = torch.where(wrong, inwards, outwards)
    moved = state["at"] - slots.x + steepest(slope, "l2") * slots.column(size)
    reach = slots.column(state["reach"])
    moved = moved.clamp(-reach, reach) if norm == "linf" else moved * (reach / lengths(moved, norm).clamp_min(TINY)).clamp_max(1)
    state["at"] = (slots.x + moved).clamp(0, 1)
    state["far"] = lengths(state["at"] - slots.x, norm).flatten()
