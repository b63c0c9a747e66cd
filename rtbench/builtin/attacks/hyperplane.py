"""Nearest points of a hyperplane within the box, under linf and l2, without sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from rtbench.threats import TINY

ROUNDS = 30


def onto_hyperplane(points: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The least change (n, d) of points (n, d) in [0, 1] that lowers w.points by `gap` (n,), raises it where gap is negative.

    Where the box does not allow it, the change that goes as far as the box does. linf: pixel i moves by min(room_i, t), l2: by
    min(room_i, t |w_i|), room_i being its way to the wall. The share of the gap that t closes is piecewise linear and concave in t, so
    Newton's method from the left climbs to the root, and stops exactly there after a few of its corners.
    """
    size = w.abs()
    down = (w * gap.sign()[:, None]) > 0  # pixels that close the gap by falling
    room = torch.where(down, points, 1 - points)
    goal = gap.abs()
    corner = room if norm == "linf" else room / size.clamp_min(TINY)
    pull = torch.stack([size if norm == "linf" else size * size, size * room], 1)
    t = _root(corner, pull, goal)
    moved = torch.minimum(room, t[:, None] if norm == "linf" else t[:, None] * size)
    moved = moved.masked_fill_(size == 0, 0)
    return torch.where(down, -moved, moved)


def _root(corner: Tensor, pull: Tensor, goal: Tensor) -> Tensor:
    """t (n,) at which the sum of pull[0] * t over corners above t, and pull[1] over the others, is the goal; inf if there is none."""
    whole = pull[:, 1].sum(1)
    t = torch.zeros_like(goal)
    free = torch.empty_like(corner)
    moving = torch.ones_like(goal, dtype=torch.bool)
    for _ in range(ROUNDS):
        torch.gt(corner, t[:, None], out=free)
        slope, kept = torch.bmm(pull, free[:, :, None]).squeeze(2).unbind(1)
        further = torch.where(slope > 0, (goal - whole + kept) / slope.clamp_min(TINY), torch.inf)
        moving = moving & (further > t * (1 + 1e-6))  # a row that has arrived stays, however long the others take
        if corner.device.type == "cpu" and not bool(moving.any()):
            break
        t = torch.where(moving, further, t)
    return t
