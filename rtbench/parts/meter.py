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

    def after(_: nn.Module, __: Any, output: Any) -> None:
        logits = _logits(output)
        rows = 0 if logits is None else len(logits)
        counts["forwards"] += rows
        if logits is not None and logits.requires_grad and torch.is_grad_enabled():
            logits.register_hook(lambda grad: count(rows))  # type: ignore[no-untyped-call]

    def count(rows: int) -> None:
        counts["gradients"] += rows

    handle = model.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _logits(output: Any) -> Tensor | None:
    """What a forward returned, or the first tensor of it: a part may ask a network for its features besides."""
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else [output]
    return next((value for value in values if isinstance(value, Tensor)), None)
