"""Which batch sizes a model may be asked at without a bit of any row changing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtbench.noise import CounterNoise

MULTIPLE = 16


def padded(batch: int) -> int:
    """The physical batch: `batch` rounded up to a multiple of 16."""
    return -(-batch // MULTIPLE) * MULTIPLE


def ladder(model: nn.Module, like: Tensor, batch: int, dtype: torch.dtype = torch.float32) -> tuple[list[int], int]:
    """(batch sizes, largest first, number of classes) for images of the shape and device of `like` (1, c, h, w).

    Verdicts must not depend on which samples share a batch. Matrix libraries choose kernels by size, so a smaller batch is used only
    where outputs and gradients of its rows, placed elsewhere, come out the same bit by bit on numbers drawn for the purpose.
    """
    noise = CounterNoise(0, torch.arange(batch, device=like.device))
    x = noise.uniform(like.expand(batch, *like.shape[1:])).to(dtype)
    logits, slope = _asked(model, x)
    sizes, size = [batch], batch
    while size > MULTIPLE:
        size = padded(max(MULTIPLE, size // 2))
        rows = torch.arange(batch - 1, -1, -1, device=x.device)[:size]
        found = _asked(model, x[rows])
        if not torch.equal(found[0], logits[rows]) or not torch.equal(found[1], slope[rows]):
            break
        sizes.append(size)
    return sizes, logits.shape[1]


def _asked(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        weights = torch.arange(1, logits.shape[1] + 1, device=x.device, dtype=logits.dtype)
        (slope,) = torch.autograd.grad((logits * weights).sum(), x)
    return logits.detach(), slope
