"""Nearest points of a hyperplane within the box, under linf and l2, without sorting."""

from __future__ import annotations

import torch
from torch import Tensor

from rtbench.parts.threats import TINY

ROUNDS, FEWER, PRECISION = 30, 10, 1e-4
"""Newton steps at most, where looking whether all have arrived costs nothing, and where it makes a device wait."""
FARTHEST = {"linf": 1.0, "l2": 1e30}
"""A t at which every pixel is at its wall."""


def onto_hyperplane(points: Tensor, w: Tensor, gap: Tensor, norm: str, guess: Tensor) -> tuple[Tensor, Tensor]:
    """(points with the least change that lowers w.points by `gap`, t): points and w (n, d) in [0, 1], gap, guess and t (n,).

    Where the box does not allow it, as far as the box does. Pixel i moves by min(room_i, t) under linf, by min(room_i, t |w_i|) under
    l2, room_i being its way to the wall; under linf t is the change's norm. How much of the gap t closes is piecewise linear and concave,
    so Newton's method, once left of the root, climbs to it in a few corners; `guess` is where it starts, at best the last t.
    """
    downhill = w * gap.sign()[:, None]
    size = w.abs()
    room = torch.lt(downhill, 0, out=torch.empty_like(w)).sub_(points).abs_()
    t = _root(room, size, gap.abs(), norm, guess)
    direction = downhill.sign_() if norm == "linf" else downhill
    return torch.addcmul(points, direction, t[:, None], value=-1).clamp_(0, 1), t


def _root(room: Tensor, size: Tensor, goal: Tensor, norm: str, t: Tensor) -> Tensor:
    """t (n,) at which the gap is closed up to 1e-4 of t; a row that has arrived stays, however long the others take."""
    moving = torch.ones_like(goal, dtype=torch.bool)
    work, weight = torch.empty_like(room), size if norm == "linf" else size * size
    every = None
    for _ in range(ROUNDS if room.device.type == "cpu" else FEWER):
        reach = t[:, None] if norm == "linf" else t[:, None] * size
        closed = torch.minimum(room, reach, out=work).mul_(size).sum(1)
        slope = torch.gt(room, reach, out=work).mul_(weight).sum(1)
        further = t + (goal - closed) / slope.clamp_min(TINY)
        stuck = slope <= 0
        if room.device.type != "cpu" or bool(stuck.any()):
            every = (room * size).sum(1) if every is None else every
            walls = torch.where(every < goal, FARTHEST[norm], torch.where(closed > goal, 0, t))
            further = torch.where(stuck, walls, further)
        further = further.clamp_(0, FARTHEST[norm])
        moving = moving & ((further - t).abs() > PRECISION * t)
        t = torch.where(moving, further, t)
        if room.device.type == "cpu":
            rows = moving.nonzero().squeeze(1)
            if 2 * len(rows) <= len(t):  # few rows need more than two or three rounds
                return t if len(rows) == 0 else t.index_copy(0, rows, _root(room[rows], size[rows], goal[rows], norm, t[rows]))
    return t
