"""Augmentation of whole batches at once; every sample has its own draw and no Python loop runs over samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pad_crop(x: Tensor, pad: int, rng: torch.Generator) -> Tensor:
    """Pads (n, c, h, w) by `pad` zeros on every side and crops a random h x w window per sample: for digits, which have no mirror image.

    rng: a CPU generator; it makes the same draws wherever `x` lives and whatever its dtype.
    """
    top, left = _corners(x, pad, rng)
    return shift_flip(x, pad, top, left, torch.zeros_like(top, dtype=torch.bool))


def pad_crop_flip(x: Tensor, pad: int, rng: torch.Generator) -> Tensor:
    """The same, and mirrors half of them left to right."""
    top, left = _corners(x, pad, rng)
    flip = torch.randint(0, 2, (len(x),), generator=rng).to(x.device).bool()
    return shift_flip(x, pad, top, left, flip)


def _corners(x: Tensor, pad: int, rng: torch.Generator) -> Tensor:
    return torch.randint(0, 2 * pad + 1, (2, len(x)), generator=rng).to(x.device)


def shift_flip(x: Tensor, pad: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """The h x w window of each padded sample whose corner is (top, left), each int64 (n,) in 0..2*pad; mirrored where `flip`.

    top = left = pad without flip is the identity. Rows are copied whole and columns gathered after, which on a CPU is twice as
    fast as one gather over single pixels.
    """
    n, c, h, w = x.shape
    height, width = h + 2 * pad, w + 2 * pad
    padded = functional.pad(x, (pad, pad, pad, pad)).view(n * c * height, width)
    rows = torch.arange(h, device=x.device) + top[:, None]
    planes = torch.arange(n * c, device=x.device).view(n, c, 1) * height
    cropped = padded.index_select(0, (planes + rows[:, None, :]).reshape(-1)).view(n, c * h, width)
    columns = torch.arange(w, device=x.device).expand(n, w)
    columns = torch.where(flip[:, None], w - 1 - columns, columns) + left[:, None]
    return cropped.gather(2, columns[:, None, :].expand(n, c * h, w)).view(n, c, h, w)
