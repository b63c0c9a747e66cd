"""DeepFool: to the nearest boundary of the linearised network, again and again.

Source: Moosavi-Dezfooli, Fawzi & Frossard 2016, arXiv:1511.04599, algorithm 2 and section 4 (linf).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from rtbench.errors import UserError
from rtbench.parts.kinds import declare
from rtbench.parts.knobs import Range
from rtbench.parts.slots import Method, Native, Slots
from rtbench.parts.threats import Threat, lengths, passable

NEAR = 1 + 1e-5
LEAST = 1e-4
"""How far each step goes beyond its boundary, so that ever shorter ones arrive."""
DUAL = {"linf": "l1", "l2": "l2"}
Count = Annotated[int, Range("[1, inf)")]


def passes(knobs: dict[str, Any], sizes: dict[str, int], nested: Any) -> tuple[float, float]:
    """Of a sample that is never broken."""
    return knobs["steps"], knobs["steps"] * knobs["candidates"]


@declare(version=2, norms=("linf", "l2"), passes=passes, minimal=("linf", "l2"))
def deepfool(
    threat: Threat, classes: int, *,
    steps: Count = 50,
    overshoot: Annotated[float, Range("[0, inf)")] = 0.02,
    candidates: Count = 9,
) -> Native:  # fmt: skip
    """DeepFool, minimal-norm under linf or l2; a sample is done once its class has changed.

    steps: linearisations at most
    overshoot: how far beyond the boundary, as a share of the whole change
    candidates: likeliest wrong classes whose boundaries are looked at, no more than there are
    """
    if threat.norm not in DUAL:
        raise UserError(f'deepfool takes linf and l2, not "{threat.norm}"')
    others = min(candidates, classes - 1)

    def step(slots: Slots) -> None:
        _step(slots, others, 1 + overshoot)

    def begin(slots: Slots, rows: Tensor) -> None:
        slots.put("at", rows, slots.x[rows])
        slots.put("change", rows, torch.zeros_like(slots.x[rows]))
        slots.put("far", rows, 0.0)
        slots.put("classes", rows, slots.y[rows, None].expand(-1, others))

    return Native((Method("deepfool", begin, step, steps + 1, gradients=others),))  # the last one only asks


def _step(slots: Slots, others: int, beyond: float) -> None:
    state, norm = slots.state, slots.threat.norm

    def leads(logits: Tensor) -> Tensor:
        """(B, others): how far each candidate is above the label."""
        label = slots.y[:, None]
        likeliest = logits.detach().scatter(1, label, -torch.inf).topk(others, dim=1).indices
        state["classes"] = torch.where(slots.age[:, None] == 0, likeliest, state["classes"])
        return logits.gather(1, state["classes"]) - logits.gather(1, label)

    lead, slope = slots.slopes(state["at"], leads, state["far"] <= slots.eps * NEAR)
    slots.leave((lead > 0).any(1))
    free = passable(slope, state["at"][:, None].expand_as(slope))  # the paper has no box
    sizes = _sizes(free, norm)
    # Where boundaries bend, short steps end nearer: walls may shorten them, but to no less than half of what is left.
    sizes = torch.minimum(2 * sizes, _sizes(slope, norm))
    nearest = (lead.abs() / sizes).argmin(1, keepdim=True)
    far, size = (lead.abs() / sizes).gather(1, nearest), sizes.gather(1, nearest)
    normal = slope[torch.arange(len(slope), device=slope.device), nearest.squeeze(1)]
    direction = normal.sign() if norm == "linf" else normal / slots.column(size.squeeze(1))
    state["change"] += direction * slots.column(far.squeeze(1) + LEAST)
    state["at"] = (slots.x + beyond * state["change"]).clamp(0, 1)
    state["far"] = lengths(state["at"] - slots.x, norm).flatten()


def _sizes(slope: Tensor, norm: str) -> Tensor:
    """(B, others): the dual norm of each gradient."""
    return torch.stack([lengths(one, DUAL[norm]).flatten() for one in slope.unbind(1)], 1).clamp_min(1e-12)
