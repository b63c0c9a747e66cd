"""Fast adaptive boundary attack: minimal changes that cross the decision boundary. Source: Croce & Hein 2020, arXiv:1907.02044."""

from __future__ import annotations

import torch
from torch import Tensor

from rtbench.builtin.attacks.hyperplane import onto_hyperplane
from rtbench.errors import UserError
from rtbench.slots import Method, Slots, unit
from rtbench.threats import lengths

BIAS, OVERSHOOT, BACK = 0.1, 1.05, 0.9
"""alpha_max, the most weight of the projected original; eta, steps beyond the boundary; beta, what is left of a step back."""
NEAR = 1 + 1e-5


def fab(name: str, norm: str, targets: int = 0, steps: int = 100, restarts: int = 1, classes: int = 0) -> Method:
    """The attack as slots. targets: likeliest wrong classes, each alone; 0 for all classes at once, of which `classes` says how many."""
    if norm not in ("linf", "l2"):
        raise UserError(f'the native FAB takes linf and l2, not "{norm}"')

    def step(slots: Slots) -> None:
        plane = _targeted(slots) if targets else _nearest(slots, classes)
        _cross(slots, *plane)

    return Method(name, _begin, step, steps, targets, restarts, 2, 1 if targets else classes - 1)


def _begin(slots: Slots, rows: Tensor) -> None:
    slots.put("at", rows, slots.x[rows])
    again = slots.restart[rows] > 0
    if bool(again.any()):
        rows = rows[again]
        x = slots.x[rows]
        noise = unit(slots.bits(rows, x[0].numel())).view_as(x).mul_(2).sub_(1)
        start = x + noise.div_(lengths(noise, slots.threat.norm)).mul_(slots.eps / 2)
        slots.put("at", rows, start.clamp_(0, 1))


def _targeted(slots: Slots) -> tuple[Tensor, Tensor]:
    """(f, w): what is to become negative for the target to overtake the label, and its gradient."""
    at = slots.state["at"]

    def lead(logits: Tensor) -> Tensor:
        return (logits.gather(1, slots.y[:, None]) - logits.gather(1, slots.target[:, None])).squeeze(1)

    _, f, w = slots.gradient(at, lead, _near(slots, at))
    return f, w


def _nearest(slots: Slots, classes: int) -> tuple[Tensor, Tensor]:
    """As `_targeted`, for the class whose linearised boundary is nearest."""
    at, dual = slots.state["at"], "l1" if slots.threat.norm == "linf" else "l2"
    best = torch.full(slots.y.shape, torch.inf, device=at.device)
    found = torch.zeros_like(best), torch.zeros_like(at)
    for other in range(1, classes):
        slots.target = (slots.y + other) % classes
        f, w = _targeted(slots)
        far = f.abs() / lengths(w, dual).flatten().add(1e-12)
        nearer = far < best
        best = torch.minimum(best, far)
        found = torch.where(nearer, f, found[0]), torch.where(slots.column(nearer), w, found[1])
    return found


def _cross(slots: Slots, f: Tensor, w: Tensor) -> None:
    """Onto the boundary, biased to the original, a little beyond; where that is adversarial, back towards the original."""
    at, x, norm = slots.state["at"], slots.x, slots.threat.norm
    flat, origin, normal = at.flatten(1), x.flatten(1), w.flatten(1)
    gap = torch.cat([f, f + ((origin - flat) * normal).sum(1)])
    change = onto_hyperplane(torch.cat([flat, origin]), torch.cat([normal, normal]), gap, norm)
    step, fresh = change.chunk(2)
    far_step, far_fresh = (lengths(part, norm).clamp_min(1e-8) for part in (step, fresh))
    bias = (far_step / (far_step + far_fresh)).clamp_(max=BIAS)
    moved = torch.lerp(step.mul_(OVERSHOOT).add_(flat), fresh.mul_(OVERSHOOT).add_(origin), bias).clamp_(0, 1).view_as(x)
    near = _near(slots, moved)
    wrong = slots.forward(moved, near).argmax(1) != slots.y
    back = torch.lerp(x, moved, BACK)
    slots.state["at"] = torch.where(slots.column(wrong), back, moved)


def _near(slots: Slots, points: Tensor) -> Tensor:
    """bool (B,): points that may lie in the ball."""
    return lengths(points - slots.x, slots.threat.norm).flatten() <= slots.eps * NEAR
