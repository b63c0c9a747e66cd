"""The patches of Square under linf: squares at one end of the ball. Source: arXiv:1912.00049, section 3 and algorithm 2."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rtbench.parts.slots import Slots, below

SPARSE = 4
"""Where a patch covers less than this part of an image, only its pixels are written."""
BLOCK, ROOM = 64, 2**19
"""Queries of a slot that are drawn at once, if no more numbers than this come of it."""
Undo = Callable[[], None] | None


def begin_linf(slots: Slots, rows: Tensor) -> None:
    """Vertical stripes of width 1 on the surface of the ball, a random sign per channel and column."""
    x = slots.x[rows]
    m, c, _, w = x.shape
    up = ((slots.bits(rows, c * w) >> 40) & 1).bool().view(m, c, 1, w)
    slots.put("best", rows, torch.where(up, slots.upper[rows], slots.lower[rows]))


def propose_linf(slots: Slots, points: Tensor, shares: tuple[float, ...], levels: Tensor, age: Tensor) -> Undo:
    """A square patch at a random place, moved to one end of the ball in every channel.

    points: (n, c, h, w), written in place, n a multiple of the slots; age: (n,); levels: which share each age has. Returns what makes
    the points copies of the best again.
    """
    _, _, h, w = points.shape
    sides = patch_sides(shares, h, w)
    coming = slots.scratch.get("coming")
    drawn = None if coming is None else coming.at(age)
    if drawn is None and (coming := _coming(slots, sides, levels, age)) is not None:
        slots.scratch["coming"] = coming
        drawn = coming.at(age)
    if drawn is not None:
        return _write(slots, points.view(len(points), -1), *drawn)
    level = levels[age]
    row, column, sign = _drawn(slots, sides, level, age)
    whole = points.view(-1, *slots.x.shape)
    tall = (sign[:, :, None] * _strips(sides, h, points.device)[level * h + row][:, None]).view(*whole.shape[:4], 1)
    wide = _strips(sides, w, points.device)[level * w + column].view(*whole.shape[:2], 1, 1, w)
    torch.addcmul(slots.state["best"], tall, wide, out=whole).clamp_(slots.lower, slots.upper)
    slots.scratch.pop("clean", None)
    return None


def _drawn(slots: Slots, sides: tuple[int, ...], level: Tensor, age: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row, column of the corner (n,); what is added (n, c)) of the patches of queries `age`, (n,), lane by lane."""
    c, h, w = slots.x.shape[1:]
    draws = slots.bits(count=1 if c <= 16 else 2, age=age)
    side = constants(sides, age.device)[level]
    up = draws[:, -1:] >> constants(tuple(range(c)), age.device) & 1  # the lowest bits, on which hardly a place depends
    sign = torch.where(age > 0, 2 * slots.eps, 0.0)[:, None] * (2 * up - 1)  # the first query is of the stripes themselves
    return below(draws[:, 0], h + 1 - side), below(draws[:, 0] << 31, w + 1 - side), sign


class Coming(NamedTuple):
    """Small patches of coming queries of all slots, drawn at once: pixels, change and the ball there, (ages * B, m), lane by lane.

    begun: (B,), the age that each slot's patches begin with; ages: how many there are.
    """

    begun: Tensor
    ages: int
    pixels: Tensor
    change: Tensor
    low: Tensor
    high: Tensor

    def at(self, age: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """pixels, change, low and high of queries `age`, (n,); None where they were not drawn."""
        b = len(self.begun)
        on = age.view(-1, b) - self.begun
        least, most = map(int, on.aminmax())
        if most >= self.ages:
            return None
        rows = (on * b + torch.arange(b, device=age.device)).flatten() if least < most else slice(most * b, most * b + b)
        return self.pixels[rows], self.change[rows], self.low[rows], self.high[rows]


def _coming(slots: Slots, sides: tuple[int, ...], levels: Tensor, age: Tensor) -> Coming | None:
    """Patches of these queries and of as many after them as fit; None where one covers too much of an image for that.

    None on a GPU as well: to look how large they are would make it wait.
    """
    if age.device.type != "cpu":
        return None
    c, h, w = slots.x.shape[1:]
    largest = int(constants(sides, age.device)[levels[age]].max())
    if SPARSE * largest * largest > h * w:
        return None
    begun = age[: len(slots.y)].clone()
    count = max(len(age) // len(begun), min(BLOCK, ROOM // (len(begun) * c * largest * largest)))
    ages = (begun + torch.arange(count, device=age.device)[:, None]).clamp_(max=len(levels) - 1).flatten()
    level = levels[ages]
    row, column, sign = _drawn(slots, sides, level, ages)
    pixels = ((row * w + column)[:, None, None] + _offsets(sides, largest, h, w, c)[level]).flatten(1)
    change = sign[:, :, None].expand(-1, -1, largest * largest).flatten(1)
    lanes = pixels.view(count, len(begun), -1)
    low, high = (ball.flatten(1).expand(count, -1, -1).gather(2, lanes).view_as(pixels) for ball in (slots.lower, slots.upper))
    return Coming(begun, count, pixels, change, low, high)


def _write(slots: Slots, points: Tensor, pixels: Tensor, change: Tensor, low: Tensor, high: Tensor) -> Undo:
    """Adds `change` to the best points at `pixels`, both (n, m), and moves them into the ball; nothing else is touched."""
    if "clean" not in slots.scratch:
        room = slots.scratch["points"]
        room[: slots.lanes * len(slots.y)].view(-1, *slots.x.shape).copy_(slots.state["best"])
        slots.scratch["clean"] = change[:0]
    lanes = pixels.view(-1, len(slots.y), pixels.shape[1])
    before = slots.state["best"].flatten(1).expand(len(lanes), -1, -1).gather(2, lanes).view_as(pixels)
    points.scatter_(1, pixels, torch.clamp(change + before, low, high))

    def undo() -> None:
        points.scatter_(1, pixels, before)

    return undo


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


@functools.lru_cache(maxsize=64)
def _offsets(sides: tuple[int, ...], largest: int, h: int, w: int, channels: int) -> Tensor:
    """(levels, channels, largest**2): how far the pixels of a patch are from its corner in a flat image; 0 again where there are fewer."""
    side, row, column = torch.tensor(sides)[:, None, None], torch.arange(largest)[:, None], torch.arange(largest)
    within = torch.where((row < side) & (column < side), row * w + column, 0).flatten(1)
    return within[:, None] + torch.arange(channels)[:, None] * h * w
