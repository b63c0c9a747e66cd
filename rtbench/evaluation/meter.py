"""Counts what a model is asked: samples passed forward, and samples whose output was differentiated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def metered(model: nn.Module, counts: dict[str, int]) -> Iterator[None]:
    """Adds to counts["forwards"] the rows of every forward, and to counts["gradients"] the rows of every backward through it."""
    counts.setdefault("forwards", 0)
    counts.setdefault("gradients", 0)

    def after(_: nn.Module, __: Any, output: Tensor) -> None:
        rows = len(output)
        counts["forwards"] += rows
        if output.requires_grad and torch.is_grad_enabled():
            output.register_hook(lambda grad: count(rows))  # type: ignore[no-untyped-call]

    def count(rows: int) -> None:
        counts["gradients"] += rows

    handle = model.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
