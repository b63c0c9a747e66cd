"""Augmentation of whole batches at once; every sample has its own draw and no Python loop runs over samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pad_crop_flip(x: Tensor, pad: int, rng: torch.Generator) -> Tensor:
    """Pads (n, c, h, w) by `pad` zeros on every side, crops a random h x w window per sample, mirrors half of them left to right.

    rng: a CPU generator; it makes the same draws wherever `x` lives and whatever its dtype.
    """
    n = len(x)
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=rng).to(x.device)
    flip = torch.randint(0, 2, (n,), generator=rng).to(x.device).bool()
    return shift_flip(x, pad, top, left, flip)


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
