"""Square attack: random search over square patches, without gradients.

Source: Andriushchenko, Croce, Flammarion & Hein 2020, arXiv:1912.00049.
"""

from __future__ import annotations

import functools
import math

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
    schedule = [share / 2 ** sum(query * 10_000 // queries > at for at in HALVED_AT) for query in range(queries + 1)]
    shares = tuple(sorted(set(schedule), reverse=True))
    levels = tuple(shares.index(one) for one in schedule)

    def step(slots: Slots) -> None:
        state = slots.state
        tried = propose(slots, shares, constants(levels, slots.x.device)[slots.age])
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


def _propose(slots: Slots, shares: tuple[float, ...], level: Tensor) -> Tensor:
    """A square patch at a random place, moved to one end of the ball in every channel."""
    best = slots.state["best"]
    _, c, h, w = best.shape
    draws = slots.bits(count=1 if c <= 16 else 2)
    sides = patch_sides(shares, h, w)
    side = constants(sides, best.device)[level]
    row, column = below(draws[:, 0], h + 1 - side), below(draws[:, 0] << 31, w + 1 - side)
    up = draws[:, -1:] >> constants(tuple(range(c)), best.device) & 1  # the lowest bits, on which hardly a place depends
    sign = torch.where(slots.age > 0, 2 * slots.eps, 0.0)[:, None] * (2 * up - 1)  # the first query is of the stripes themselves
    tall = sign[:, :, None] * _strips(sides, h, best.device)[level * h + row][:, None]
    wide = _strips(sides, w, best.device)[level * w + column]
    return slots.clip_(torch.addcmul(best, tall[:, :, :, None], wide[:, None, None, :]))


@functools.lru_cache(maxsize=64)
def constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(n,) on the device, made once."""
    return torch.tensor(values, device=device)


@functools.lru_cache(maxsize=16)
def patch_sides(shares: tuple[float, ...], h: int, w: int) -> tuple[int, ...]:
    """For each share of an h x w image, the side of a square that covers it, at least 1."""
    return tuple(max(1, min(round(math.sqrt(share * h * w)), min(h, w) - 1)) for share in shares)


@functools.lru_cache(maxsize=16)
def _strips(sides: tuple[int, ...], n: int, device: torch.device) -> Tensor:
    """(levels * n, n): row level * n + start is 1 on the `side` pixels from start on, 0 elsewhere."""
    at, start = torch.arange(n)[None, None, :], torch.arange(n)[None, :, None]
    side = torch.tensor(sides)[:, None, None]
    return ((at >= start) & (at < start + side)).float().view(-1, n).to(device)
