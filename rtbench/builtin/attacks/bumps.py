"""The patches of Square under l2: bumps that spend the radius where they stand. Source: arXiv:1912.00049, section 3 and algorithm 3.

Bumps and places are those of AutoAttack, which differ from the paper's: both halves of a bump weigh the same, and no patch touches the last
row or column. On images with an empty rim, such as MNIST, that breaks more.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from rtbench.builtin.attacks.patches import Proposed, in_turn, next_ages
from rtbench.parts import threats
from rtbench.parts.slots import Slots, below
from rtbench.parts.threats import TINY, lengths

TILES = 5


@functools.lru_cache(maxsize=8)
def bumps(largest: int) -> Tensor:
    """(largest + 1, largest, largest): for each side s, in the corner, a bump beside a negative one, of unit l2 norm together."""
    found = torch.zeros(largest + 1, largest, largest)
    for side in range(1, largest + 1):
        half = side // 2
        found[side, :side, :half] = _bump(side, half)
        found[side, :side, half:side] = -_bump(side, side - half)
    return found / found.square().sum((1, 2), keepdim=True).sqrt().clamp_min(TINY)


def _bump(tall: int, wide: int) -> Tensor:
    """A sum of nested rectangles: sum over k <= M(r, c) of 1 / (n + 1 - k)**2, n half the longer side; scaled to unit l2 norm."""
    n = max(tall, wide) // 2
    r, c = torch.arange(tall)[:, None], torch.arange(wide)[None, :]
    depth = n - torch.maximum((r - tall // 2).abs(), (c - wide // 2).abs())
    terms = torch.tensor([1.0 / (n + 1 - k) ** 2 for k in range(n + 1)]).cumsum(0)
    found = torch.where(depth >= 0, terms[depth.clamp(0, n)], 0)
    return found / found.square().sum().sqrt().clamp_min(TINY)


def begin_l2(slots: Slots, rows: Tensor) -> None:
    """A grid of 5 x 5 tiles, each a bump, upright or on its side, with a random sign per channel, over the whole radius."""
    x = slots.x[rows]
    m, c, h, w = x.shape
    side = min(h, w) // TILES
    bits = slots.bits(rows, (c + 1) * TILES * TILES).view(m, c + 1, TILES, 1, TILES, 1)
    signs = ((bits[:, :c] >> 40) & 1).float().mul_(2).sub_(1)
    upright = bumps(max(h, w))[side, :side, :side].to(x.device)[:, None]
    tile = torch.where(((bits[:, c:] >> 40) & 1).bool(), upright, upright.permute(2, 1, 0))
    grid = torch.zeros_like(x)
    top, left = (h - side * TILES) // 2, (w - side * TILES) // 2
    tiles = (signs * tile).reshape(m, c, side * TILES, side * TILES)
    grid[:, :, top : top + side * TILES, left : left + side * TILES] = tiles
    reach = slots.eps * (1 - 1e-6)
    slots.put("best", rows, (x + grid * (reach / lengths(grid, "l2").clamp_min(TINY))).clamp_(0, 1))


def propose_l2(slots: Slots, points: Tensor, ahead: int, shares: tuple[float, ...], levels: Tensor) -> Proposed:
    """Empties one patch, and puts a bump of what it held and of the unused radius into another.

    points: (ahead * B, c, h, w), lane by lane, written in place; levels: which share each query has.
    """
    _, c, h, w = points.shape
    age, lanes = next_ages(slots, ahead, len(levels)), (ahead, 1, 1, 1)
    x = slots.x.repeat(lanes)
    delta = slots.state["best"].repeat(lanes).sub_(x)
    sides = [min(max(3, round(math.sqrt(share * h * w))) | 1, min(h, w) - 1 + min(h, w) % 2) for share in shares]  # a bump has a middle
    side = torch.tensor(sides, device=x.device)[levels[age]]
    draws = slots.bits(count=6, age=age)
    here, row, column = _window(draws[:, 0], draws[:, 1], side, h, w)
    there, _, _ = _window(draws[:, 2], draws[:, 3], side, h, w)
    shape = _shape(row, column, side, here, draws[:, 4], max(h, w)).unsqueeze(1)
    signs = (draws[:, 5:] >> torch.arange(c, device=x.device).add_(7) & 1).float().mul_(2).sub_(1)[:, :, None, None]
    here, there = here.unsqueeze(1), there.unsqueeze(1)
    held = delta * here
    fresh = shape * signs + held / _norm(held)
    used, both = delta.square().sum((1, 2, 3), keepdim=True), (delta * (here | there)).square().sum((2, 3), keepdim=True)
    spare = ((slots.eps * (1 - 1e-6)) ** 2 - used).clamp_min(0) / c
    moved = torch.where(here, fresh * ((both + spare).sqrt() / _norm(fresh)), delta.masked_fill(there, 0))
    moved = torch.where(slots.column(age > 0), moved, delta)  # the first query is of the tiles themselves
    points.copy_(threats.onto_ball(moved.add_(x).clamp_(0, 1).sub_(x), "l2", slots.eps * (1 - 1e-6)).add_(x))
    return in_turn(slots, ahead, len(levels))


def _norm(patch: Tensor) -> Tensor:
    """(B, c, 1, 1)."""
    return patch.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-12)


def _window(first: Tensor, second: Tensor, side: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """(inside it, bool (B, h, w); row and column from its corner) of a random square window, last row and column apart."""
    row = torch.arange(h, device=side.device) - below(first, (h - side).clamp_min(1))[:, None]
    column = torch.arange(w, device=side.device) - below(second, (w - side).clamp_min(1))[:, None]
    rows, columns = (row >= 0) & (row < side[:, None]), (column >= 0) & (column < side[:, None])
    return rows[:, :, None] & columns[:, None, :], row, column


def _shape(row: Tensor, column: Tensor, side: Tensor, here: Tensor, bits: Tensor, largest: int) -> Tensor:
    """The bump of each slot's window, upright or on its side, (B, h, w); 0 outside."""
    r, c = (at.clamp(0, largest - 1) for at in (row, column))
    flat = side[:, None, None] * largest * largest
    upright = flat + r[:, :, None] * largest + c[:, None, :]
    lying = flat + r[:, :, None] + c[:, None, :] * largest
    where = torch.where(((bits >> 9) & 1).bool()[:, None, None], upright, lying)
    return bumps(largest).to(side.device).flatten()[where] * here
