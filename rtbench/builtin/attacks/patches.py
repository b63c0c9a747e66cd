"""The patches of Square under linf: squares at one end of the ball. Source: arXiv:1912.00049, section 3 and algorithm 2."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from rtbench.slots import Slots, below

SPARSE = 4
"""Where a patch covers less than this part of an image, only its pixels are written."""
Undo = Callable[[], None] | None


def begin_linf(slots: Slots, rows: Tensor) -> None:
    """Vertical stripes of width 1 on the surface of the ball, a random sign per channel and column."""
    x = slots.x[rows]
    m, c, _, w = x.shape
    up = ((slots.bits(rows, c * w) >> 40) & 1).bool().view(m, c, 1, w)
    slots.put("best", rows, torch.where(up, slots.upper[rows], slots.lower[rows]))


def propose_linf(slots: Slots, points: Tensor, shares: tuple[float, ...], level: Tensor, age: Tensor) -> Undo:
    """A square patch at a random place, moved to one end of the ball in every channel.

    points: (n, c, h, w), written in place, n a multiple of the slots; level, age: (n,). Returns what makes them copies of the best again.
    """
    n, c, h, w = points.shape
    draws = slots.bits(count=1 if c <= 16 else 2, age=age)
    sides = patch_sides(shares, h, w)
    side = constants(sides, points.device)[level]
    row, column = below(draws[:, 0], h + 1 - side), below(draws[:, 0] << 31, w + 1 - side)
    up = draws[:, -1:] >> constants(tuple(range(c)), points.device) & 1  # the lowest bits, on which hardly a place depends
    sign = torch.where(age > 0, 2 * slots.eps, 0.0)[:, None] * (2 * up - 1)  # the first query is of the stripes themselves
    largest = int(side.max()) if points.device.type == "cpu" else h
    if SPARSE * largest * largest > h * w:
        whole = points.view(-1, *slots.x.shape)
        tall = (sign[:, :, None] * _strips(sides, h, points.device)[level * h + row][:, None]).view(*whole.shape[:4], 1)
        wide = _strips(sides, w, points.device)[level * w + column].view(*whole.shape[:2], 1, 1, w)
        torch.addcmul(slots.state["best"], tall, wide, out=whole).clamp_(slots.lower, slots.upper)
        slots.scratch.pop("clean", None)
        return None
    pixels = (row * w + column)[:, None, None] + _offsets(sides, largest, h, w, c)[level]
    return _write(slots, points.view(n, -1), pixels.flatten(1), sign.repeat_interleave(largest * largest, 1))


def _write(slots: Slots, points: Tensor, pixels: Tensor, change: Tensor) -> Undo:
    """Adds `change` to the best points at `pixels`, both (n, m), and moves them into the ball; nothing else is touched."""
    if "clean" not in slots.scratch:
        room = slots.scratch["points"]
        room[: slots.lanes * len(slots.y)].view(-1, *slots.x.shape).copy_(slots.state["best"])
        slots.scratch["clean"] = change[:0]
    lanes = pixels.view(-1, len(slots.y), pixels.shape[1])

    def old(image: Tensor) -> Tensor:
        return image.flatten(1).expand(len(lanes), -1, -1).gather(2, lanes).view_as(pixels)

    before = old(slots.state["best"])
    points.scatter_(1, pixels, torch.clamp(change + before, old(slots.lower), old(slots.upper)))

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
