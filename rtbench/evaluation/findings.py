"""What makes an attack's number doubtful, found by asking the model itself. Source: Croce & Hein 2020, arXiv:2003.01690, section 6.

Each is found anew for every model: nothing of one model is held against the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

ASKED, RANDOM, SUMS = 4, 1e-4, 1e-5
"""Times the same batch is asked; how far answers may differ, as a share of their length; how far probabilities may miss a sum of 1."""
MASKED = 0.002
"""The share of samples that an attack without gradients may break after the others."""


def about_outputs(logits: Callable[[Tensor], Tensor], x: Tensor) -> list[str]:
    """Flags of the model's answers to one batch: `randomised`, `probabilities`, `dynamic-forward`."""
    with _counted() as solved:
        first = logits(x)
    flags = []
    scale = torch.linalg.vector_norm(first.double(), dim=1, keepdim=True).clamp_min(1e-10)
    if any(bool((((logits(x).double() - first) / scale).abs() > RANDOM).any()) for _ in range(ASKED - 1)):
        flags.append("randomised")
    if bool(((first >= 0) & (first <= 1)).all()) and bool(((first.sum(1) - 1).abs() < SUMS).all()):
        flags.append("probabilities")
    if solved:
        flags.append("dynamic-forward")
    return flags


@contextlib.contextmanager
def _counted() -> Iterator[list[str]]:
    """Gradients that are taken meanwhile."""
    taken: list[str] = []
    grad, backward = torch.autograd.grad, torch.autograd.backward

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            taken.append(name)
            return function(*args, **given)

        return call

    torch.autograd.grad, torch.autograd.backward = watched("grad", grad), watched("backward", backward)
    try:
        yield taken
    finally:
        torch.autograd.grad, torch.autograd.backward = grad, backward


def masked(survivors: dict[str, Tensor], blind: str = "square") -> bool:
    """Whether the attack `blind`, which uses no gradients, broke more than 0.2 % of all samples after others had tried."""
    names = list(survivors)
    if blind not in names or names.index(blind) == 0:
        return False
    before, after = survivors[names[names.index(blind) - 1]], survivors[blind]
    return float((before & ~after).double().mean()) > MASKED
