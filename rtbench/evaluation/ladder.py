"""Which batch sizes a model may be asked at without a bit of any row changing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rtbench.parts.noise import CounterNoise

MULTIPLE, STEP = 16, 15 / 16


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
        self.like, self.batch = like, padded(batch)
        self.sizes = [self.batch]
        while self.sizes[-1] > MULTIPLE:
            self.sizes.append(min(padded(self.sizes[-1] * STEP), self.sizes[-1] - MULTIPLE))
        self.known = {self.batch: True}
        self._models = [(model, torch.float32)]
        self._whole: list[tuple[Tensor, Tensor]] = []

    def also(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Sizes have to hold for this model, asked in this precision, as well."""
        self._models.append((model, dtype))

    def fit(self, count: int) -> int:
        """The smallest batch for so many rows; the whole one, if it has to be."""
        return next((size for size in reversed(self.sizes) if size >= count and self._holds(size)), self.batch)

    def _holds(self, size: int) -> bool:
        if size not in self.known:
            noise = CounterNoise(0, torch.arange(self.batch, device=self.like.device))
            x = noise.uniform(self.like.expand(self.batch, *self.like.shape[1:]))
            if not self._whole:
                self._whole = [answers(model, x.to(dtype)) for model, dtype in self._models]
            rows = torch.arange(self.batch - 1, -1, -1, device=x.device)[:size]
            found = [answers(model, x[rows].to(dtype)) for model, dtype in self._models]
            pairs = zip(found, self._whole, strict=True)
            self.known[size] = all(torch.equal(part, all_[rows]) for few, many in pairs for part, all_ in zip(few, many, strict=True))
        return self.known[size]

    def state_dict(self) -> dict[str, Any]:
        """What was found out, so that a resumed run asks the model no more than one that was never killed."""
        return {"known": dict(self.known), "whole": list(self._whole)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if len(saved["whole"]) not in (0, len(self._models)):
            return  # an earlier rtbench asked fewer models
        self.known = dict(saved["known"])
        self._whole = [(logits.to(self.like.device), slope.to(self.like.device)) for logits, slope in saved["whole"]]


def answers(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, k), and the gradient (n, ...) of a sum of them that weighs every class otherwise."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        weights = torch.arange(1, logits.shape[1] + 1, device=x.device, dtype=logits.dtype)
        return logits.detach(), slope_of((logits * weights).sum(), x)


def slope_of(value: Tensor, x: Tensor) -> Tensor:
    """The gradient of a number at x, 0 where nothing can be differentiated."""
    try:
        (slope,) = torch.autograd.grad(value, x, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        slope = None
    return torch.zeros_like(x) if slope is None else slope
