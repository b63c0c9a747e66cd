"""Random noise: the cheapest baseline. A gradient attack that does worse is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from torch import Tensor

from rtbench.errors import UserError
from rtbench.parts.kinds import declare
from rtbench.parts.knobs import Range
from rtbench.parts.slots import Method, Native, Slots, normal, unit
from rtbench.parts.threats import TINY, Threat, lengths

Distribution = Literal["uniform", "gaussian", "corners"]


def passes(knobs: dict[str, Any], sizes: dict[str, int], nested: Any) -> tuple[float, float]:
    return knobs["draws"], 0


@declare(norms=("linf", "l2"), passes=passes)
def noise(threat: Threat, *, draws: Annotated[int, Range("[1, inf)")] = 100, distribution: Distribution = "uniform") -> Native:
    """Noise under linf or l2, each draw judged by itself; what leaves ball or box is moved back. No gradients.

    draws: points tried
    distribution: "uniform" in the ball; "gaussian" of deviation eps (linf) or eps / sqrt(d) (l2); "corners" of a cube, on the ball
    """
    if threat.norm not in ("linf", "l2"):
        raise UserError(f'noise takes linf and l2, not "{threat.norm}"')
    draw = DRAWS[distribution]

    def step(slots: Slots) -> None:
        delta = draw(slots, slots.x[0].numel()).view_as(slots.x).mul_(slots.eps)
        slots.forward(slots.clip_(delta.add_(slots.x)))

    return Native((Method(f"noise-{distribution}", lambda slots, rows: None, step, draws),))


def _uniform(slots: Slots, d: int) -> Tensor:
    """In the unit ball, (B, d); under l2 a normal direction at a distance u^(1/d)."""
    if slots.threat.norm == "linf":
        return unit(slots.bits(count=d)).mul_(2).sub_(1)
    bits = slots.bits(count=d + 1)
    direction = normal(bits[:, :d])
    return direction.mul_(unit(bits[:, d:]) ** (1 / d) / lengths(direction, "l2").clamp_min(TINY))


def _gaussian(slots: Slots, d: int) -> Tensor:
    return normal(slots.bits(count=d)).mul_(1 if slots.threat.norm == "linf" else d**-0.5)


def _corners(slots: Slots, d: int) -> Tensor:
    return ((slots.bits(count=d) >> 40) & 1).float().mul_(2).sub_(1).mul_(1 if slots.threat.norm == "linf" else d**-0.5)


DRAWS: dict[str, Callable[[Slots, int], Tensor]] = {"uniform": _uniform, "gaussian": _gaussian, "corners": _corners}
