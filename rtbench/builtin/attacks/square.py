"""Square attack: random search over square patches, without gradients.

Source: Andriushchenko, Croce, Flammarion & Hein 2020, arXiv:1912.00049.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rtbench.builtin.attacks.patches import begin_l2, propose_l2
from rtbench.errors import UserError
from rtbench.slots import Method, Slots, below

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries out of 10,000 after which the patch's share of the image is halved."""


def square(name: str, norm: str, side: int, queries: int = 5000, restarts: int = 1, share: float = 0.8) -> Method:
    """The attack as slots, for images of `side` pixels. share: of the image's pixels that the first patches cover."""
    if norm not in ("linf", "l2"):
        raise UserError(f'the native Square takes linf and l2, not "{norm}"')
    if norm == "l2" and side < 5:
        raise UserError(f"Square under l2 needs images of at least 5 pixels, not {side}")
    begin, propose = (_begin, _propose) if norm == "linf" else (begin_l2, propose_l2)
    shares = torch.tensor([share / 2 ** sum(query * 10_000 // queries > at for at in HALVED_AT) for query in range(queries + 1)])

    def step(slots: Slots) -> None:
        state = slots.state
        tried = propose(slots, shares.to(slots.x.device)[slots.age])
        lead = margin(slots.forward(tried), slots.y)
        better = lead < state["lead"]
        state["lead"] = torch.minimum(lead, state["lead"])
        slots.keep("best", better, tried)

    def fresh(slots: Slots, rows: Tensor) -> None:
        begin(slots, rows)
        slots.put("lead", rows, torch.inf)

    return Method(name, fresh, step, queries + 1, 0, restarts)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The label's logit less the highest other one, (B,)."""
    label = y[:, None]
    return logits.gather(1, label).squeeze(1) - logits.scatter(1, label, -torch.inf).amax(1)


def _begin(slots: Slots, rows: Tensor) -> None:
    """Vertical stripes of width 1 on the surface of the ball, a random sign per channel and column."""
    x = slots.x[rows]
    m, c, _, w = x.shape
    up = ((slots.bits(rows, c * w) >> 40) & 1).bool().view(m, c, 1, w)
    slots.put("best", rows, torch.where(up, slots.upper[rows], slots.lower[rows]))


def _propose(slots: Slots, shares: Tensor) -> Tensor:
    """A square patch at a random place, moved to one end of the ball in every channel."""
    best = slots.state["best"]
    _, c, h, w = best.shape
    draws = slots.bits(count=3)
    side = patch_side(shares, h, w) * (slots.age > 0)  # the first query is of the stripes themselves
    rows, columns = (
        ((at := torch.arange(n, device=best.device) - below(draws[:, i], n - side + 1)[:, None]) >= 0) & (at < side[:, None])
        for i, n in enumerate((h, w))
    )
    signs = (draws[:, 2:] >> torch.arange(c, device=best.device).add_(7) & 1).float().mul_(4 * slots.eps).sub_(2 * slots.eps)
    tall = signs[:, :, None, None] * rows[:, None, :, None]
    return slots.clip_(torch.addcmul(best, tall, columns[:, None, None, :].to(best.dtype)))


def patch_side(shares: Tensor, h: int, w: int) -> Tensor:
    """int64 (B,): the side of a square that covers this share of an h x w image, at least 1."""
    return (shares * (h * w)).sqrt().round().long().clamp_(1, min(h, w) - (min(h, w) > 1))
