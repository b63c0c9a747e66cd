"""Which batch sizes a model may be asked at without a bit of any row changing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtbench.noise import CounterNoise

MULTIPLE, STEP = 16, 7 / 8


def padded(batch: float) -> int:
    """The physical batch: `batch` rounded up to a multiple of 16."""
    return max(MULTIPLE, int(-(-batch // MULTIPLE)) * MULTIPLE)


class Ladder:
    """The batch, and the smaller ones that may take its place, for images of shape and device of `like` (1, c, h, w).

    Verdicts must not depend on which samples share a batch. Matrix libraries choose kernels by size, so a smaller batch is used only
    where outputs and gradients of its rows, placed elsewhere, come out the same bit by bit on numbers drawn for the purpose. A size is
    tried when it is first wanted.
    """

    def __init__(self, model: nn.Module, like: Tensor, batch: int) -> None:
        self.model, self.like, self.batch = model, like, padded(batch)
        self.sizes = [self.batch]
        while self.sizes[-1] > MULTIPLE:
            self.sizes.append(min(padded(self.sizes[-1] * STEP), self.sizes[-1] - MULTIPLE))
        self.known = {self.batch: True}
        self._whole: tuple[Tensor, Tensor, Tensor] | None = None

    def fit(self, count: int) -> int:
        """The smallest batch for so many rows; the whole one, if it has to be."""
        return next((size for size in reversed(self.sizes) if size >= count and self._holds(size)), self.batch)

    def _holds(self, size: int) -> bool:
        if size not in self.known:
            if self._whole is None:
                noise = CounterNoise(0, torch.arange(self.batch, device=self.like.device))
                x = noise.uniform(self.like.expand(self.batch, *self.like.shape[1:]))
                self._whole = x, *_asked(self.model, x)
            x, logits, slope = self._whole
            rows = torch.arange(self.batch - 1, -1, -1, device=x.device)[:size]
            found = _asked(self.model, x[rows])
            self.known[size] = torch.equal(found[0], logits[rows]) and torch.equal(found[1], slope[rows])
        return self.known[size]


def _asked(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        weights = torch.arange(1, logits.shape[1] + 1, device=x.device, dtype=logits.dtype)
        (slope,) = torch.autograd.grad((logits * weights).sum(), x)
    return logits.detach(), slope
