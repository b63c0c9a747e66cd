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
BLOCK, ROOM = 256, 2**19
"""Queries of a slot that are drawn at once, if no more numbers than this come of it."""


class Proposed(NamedTuple):
    """Which queries were written, where they are not simply the next one of each slot.

    number: int64 (lanes, B), how many after its next query each is; of those between, none could gain. due: bool (lanes, B), which are
    a try's own; None if all are. undo: makes the points copies of the best again.
    """

    number: Tensor | None = None
    due: Tensor | None = None
    undo: Callable[[], None] | None = None


def skipped(ahead: int) -> int:
    """How many queries of a slot may be left out in a step that asks so many: half as many, for late in a search one in three can be."""
    return max(2, ahead // 2)


def in_turn(slots: Slots, ahead: int, queries: int) -> Proposed:
    """The next `ahead` queries of each slot, of the `queries` that a try has, and nothing to undo."""
    if ahead == 1:
        return Proposed()
    number, left = torch.arange(ahead, device=slots.age.device)[:, None], queries - slots.age
    return Proposed(torch.minimum(number, left - 1), number < left)


def begin_linf(slots: Slots, rows: Tensor) -> None:
    """Vertical stripes of width 1 on the surface of the ball, a random sign per channel and column."""
    x = slots.x[rows]
    m, c, _, w = x.shape
    up = ((slots.bits(rows, c * w) >> 40) & 1).bool().view(m, c, 1, w)
    slots.put("best", rows, torch.where(up, slots.upper[rows], slots.lower[rows]))


def propose_linf(slots: Slots, points: Tensor, ahead: int, shares: tuple[float, ...], levels: Tensor) -> Proposed:
    """Square patches at random places, moved to one end of the ball in every channel.

    points: (ahead * B, c, h, w), lane by lane, written in place; levels: which share each query has. Small patches that would leave the
    best point as it is are left out: asking it again could not gain.
    """
    _, _, h, w = points.shape
    sides = patch_sides(shares, h, w)
    count, coming = ahead + skipped(ahead), slots.scratch.get("coming")
    if coming is None or not coming.holds(slots.age, count):
        coming = slots.scratch["coming"] = _coming(slots, sides, levels, count)
    if coming is not None:
        return _write(slots, points, ahead, coming)
    age = next_ages(slots, ahead, len(levels))
    level = levels[age]
    row, column, sign = _drawn(slots, sides, level, age)
    whole = points.view(-1, *slots.x.shape)
    tall = (sign[:, :, None] * _strips(sides, h, points.device)[level * h + row][:, None]).view(*whole.shape[:4], 1)
    wide = _strips(sides, w, points.device)[level * w + column].view(*whole.shape[:2], 1, 1, w)
    torch.addcmul(slots.state["best"], tall, wide, out=whole).clamp_(slots.lower, slots.upper)
    slots.scratch.pop("clean", None)
    return in_turn(slots, ahead, len(levels))


def next_ages(slots: Slots, count: int, queries: int) -> Tensor:
    """The next `count` queries of each slot, (count * B,), lane by lane; its last one again where there are fewer."""
    return (slots.age + torch.arange(count, device=slots.age.device)[:, None]).clamp_(max=queries - 1).flatten()


def _drawn(slots: Slots, sides: tuple[int, ...], level: Tensor, age: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(row, column of the corner (n,); what is added (n, c)) of the patches of queries `age`, (n,), lane by lane."""
    c, h, w = slots.x.shape[1:]
    draws = slots.bits(count=1 if c <= 16 else 2, age=age)
    side = constants(sides, age.device)[level]
    up = draws[:, -1:] >> constants(tuple(range(c)), age.device) & 1  # the lowest bits, on which hardly a place depends
    sign = torch.where(age > 0, 2 * slots.eps, 0.0)[:, None] * (2 * up - 1)  # the first query is of the stripes themselves
    return below(draws[:, 0], h + 1 - side), below(draws[:, 0] << 31, w + 1 - side), sign


class Coming(NamedTuple):
    """Small patches of the next queries of all slots, drawn at once: pixels, and the values they are moved to, (ages * B, m), lane by lane.

    begun: (B,), the query that each slot's patches begin with; ages: how many there are; left: (B,), how many of them are a try's own,
    None if all are; stripes: whether the first query of a try is among them, which is asked though it changes nothing.
    """

    begun: Tensor
    ages: int
    left: Tensor | None
    stripes: bool
    pixels: Tensor
    ends: Tensor

    def holds(self, age: Tensor, count: int) -> bool:
        """Whether they are the next `count` queries of every slot, and more."""
        return int((age - self.begun).max()) + count <= self.ages


def _coming(slots: Slots, sides: tuple[int, ...], levels: Tensor, least: int) -> Coming | None:
    """Patches of the next queries, at least so many and as many as fit; None where one covers too much of an image for that.

    None on a GPU as well: to look how large they are would make it wait.
    """
    if slots.age.device.type != "cpu":
        return None
    c, h, w = slots.x.shape[1:]
    largest = int(constants(sides, slots.age.device)[levels[slots.age]].max())
    if SPARSE * largest * largest > h * w:
        return None
    begun = slots.age.clone()
    count = max(least, min(BLOCK, ROOM // (len(begun) * c * largest * largest)))
    ages = next_ages(slots, count, len(levels))
    level = levels[ages]
    row, column, sign = _drawn(slots, sides, level, ages)
    pixels = ((row * w + column)[:, None, None] + _offsets(sides, largest, h, w, c)[level]).flatten(1)
    sign = sign[:, :, None].expand(-1, -1, largest * largest).flatten(1)
    ends, stripes = torch.where(sign > 0, _at(slots.upper, pixels), _at(slots.lower, pixels)), not bool(begun.all())
    if stripes:
        ends = torch.where(sign == 0, _at(slots.state["best"], pixels), ends)
    left = len(levels) - begun if int(begun.max()) + count > len(levels) else None
    return Coming(begun, count, left, stripes, pixels, ends)


def _at(images: Tensor, pixels: Tensor) -> Tensor:
    """Values of images (B, ...) at flat pixels (lanes * B, m), lane by lane, in the same shape."""
    lanes = pixels.view(-1, len(images), pixels.shape[1])
    return images.flatten(1).expand(len(lanes), -1, -1).gather(2, lanes).view_as(pixels)


def _write(slots: Slots, points: Tensor, ahead: int, coming: Coming) -> Proposed:
    """The next patches that change something, on copies of the best points; nothing but their pixels is written."""
    b, count = len(slots.y), ahead + skipped(ahead)
    if "clean" not in slots.scratch:
        room = slots.scratch["points"]
        room[: slots.lanes * b].view(-1, *slots.x.shape).copy_(slots.state["best"])
        slots.scratch["clean"] = points[:0]
    number, later, first = _places(b, count)
    done = slots.age - coming.begun
    rows = ((done * b)[:, None] + later).flatten()
    pixels, ends = coming.pixels.index_select(0, rows), coming.ends.index_select(0, rows)
    before = slots.state["best"].flatten(1).gather(1, pixels.view(b, -1)).view_as(ends)
    useful = (before != ends).any(1).view(b, count)
    if coming.stripes:
        useful |= slots.age[:, None] + number == 0
    left = None if coming.left is None else coming.left - done
    if left is not None:
        useful &= number < left[:, None]
    lanes = torch.argsort(useful, dim=1, descending=True, stable=True)[:, :ahead]
    at = (first + lanes).t().flatten()
    pixels, ends, before = (values.index_select(0, at) for values in (pixels, ends, before))
    flat = points.view(len(points), -1)
    flat.scatter_(1, pixels, ends)

    def undo() -> None:
        flat.scatter_(1, pixels, before)

    if left is None:
        return Proposed(lanes.t(), None, undo)
    return Proposed(torch.minimum(lanes.t(), left - 1), number[:ahead, None] < useful.sum(1), undo)


@functools.lru_cache(maxsize=64)
def _places(slots: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """0 to count - 1; (slots, count), each slot's rows of `count` lanes that hold all slots; (slots, 1), its first of count rows each."""
    number, slot = torch.arange(count), torch.arange(slots)[:, None]
    return number, number * slots + slot, slot * count


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
