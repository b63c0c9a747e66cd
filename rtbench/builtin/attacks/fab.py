"""Fast adaptive boundary attack: minimal changes that cross the decision boundary. Source: Croce & Hein 2020, arXiv:1907.02044."""

from __future__ import annotations

import torch
from torch import Tensor

from rtbench.builtin.attacks.hyperplane import onto_hyperplane
from rtbench.errors import UserError
from rtbench.parts.slots import Method, Slots, unit
from rtbench.parts.threats import lengths

BIAS, OVERSHOOT, BACK = 0.1, 1.05, 0.9
"""alpha_max, the most weight of the projected original; eta, steps beyond the boundary; beta, what is left of a step back."""
NEAR = 1 + 1e-5


def fab(name: str, norm: str, targets: int = 0, steps: int = 100, restarts: int = 1, classes: int = 0) -> Method:
    """The attack as slots. targets: likeliest wrong classes, each alone; 0 for all classes at once, of which `classes` says how many."""
    if norm not in ("linf", "l2"):
        raise UserError(f'the native FAB takes linf and l2, not "{norm}"')

    def step(slots: Slots) -> None:
        plane = _targeted(slots, slots.target) if targets else _nearest(slots, classes)
        _cross(slots, *plane)

    asked = 1 if targets else classes - 1
    return Method(name, _begin, step, steps, targets, restarts, 1 + asked, asked)


def _begin(slots: Slots, rows: Tensor) -> None:
    slots.put("at", rows, slots.x[rows])
    for name in ("far", "step", "fresh"):
        slots.put(name, rows, 0.0)
    again = slots.restart[rows] > 0
    if bool(again.any()):
        rows = rows[again]
        x = slots.x[rows]
        noise = unit(slots.bits(rows, x[0].numel())).view_as(x).mul_(2).sub_(1)
        start = x + noise.div_(lengths(noise, slots.threat.norm)).mul_(slots.eps / 2)
        slots.put("at", rows, start.clamp_(0, 1))


def _targeted(slots: Slots, target: Tensor) -> tuple[Tensor, Tensor]:
    """(f, w): what is to become negative for the target to overtake the label, and its gradient."""

    def lead(logits: Tensor) -> Tensor:
        sign = torch.zeros_like(logits).scatter_(1, slots.y[:, None], 1.0)
        return (logits * sign.scatter_(1, target[:, None], -1.0)).sum(1)

    _, f, w = slots.gradient(slots.state["at"], lead, slots.state["far"] <= slots.eps * NEAR)
    return f, w


def _nearest(slots: Slots, classes: int) -> tuple[Tensor, Tensor]:
    """As `_targeted`, for the class whose linearised boundary is nearest."""
    dual = "l1" if slots.threat.norm == "linf" else "l2"
    best = torch.full(slots.y.shape, torch.inf, device=slots.x.device)
    least, normal = torch.zeros_like(best), torch.zeros_like(slots.x)
    for other in range(1, classes):
        f, w = _targeted(slots, (slots.y + other) % classes)
        far = f.abs() / lengths(w, dual).flatten().add(1e-12)
        nearer = far < best
        best, least = torch.where(nearer, far, best), torch.where(nearer, f, least)
        normal = torch.where(slots.column(nearer), w, normal)
    return least, normal


def _cross(slots: Slots, f: Tensor, w: Tensor) -> None:
    """Onto the boundary, biased to the original, a little beyond; where that is adversarial, back towards the original."""
    state, norm = slots.state, slots.threat.norm
    at, x, normal = state["at"].flatten(1), slots.x.flatten(1), w.flatten(1)
    step, state["step"] = onto_hyperplane(at, normal, f, norm, state["step"])
    fresh, state["fresh"] = onto_hyperplane(x, normal, f + (x - at).mul_(normal).sum(1), norm, state["fresh"])
    far_step, far_fresh = state["step"], state["fresh"]
    if norm == "l2":
        far_step, far_fresh = (torch.linalg.vector_norm(a - b, dim=1) for a, b in ((step, at), (fresh, x)))
    bias = far_step.clamp_min(1e-8) / (far_step.clamp_min(1e-8) + far_fresh.clamp_min(1e-8))
    torch.lerp(at, step, OVERSHOOT, out=step)
    torch.lerp(x, fresh, OVERSHOOT, out=fresh)
    moved = step.lerp_(fresh, bias.clamp_(max=BIAS)[:, None]).clamp_(0, 1)
    change = torch.sub(moved, x, out=fresh)
    far = change.abs_().amax(1) if norm == "linf" else torch.linalg.vector_norm(change, dim=1)
    moved = moved.view_as(slots.x)
    wrong = slots.forward(moved, far <= slots.eps * NEAR).argmax(1) != slots.y
    kept = torch.where(wrong, BACK, 1.0)
    state["at"], state["far"] = torch.lerp(slots.x, moved, slots.column(kept)), far * kept
