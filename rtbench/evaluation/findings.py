"""What makes an attack's number doubtful, found by asking the model itself. Source: Croce & Hein 2020, arXiv:2003.01690, section 6.

Each is found anew for every model: nothing of one model is held against the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

ASKED, RANDOM, SUMS = 4, 1e-4, 1e-5
"""Times the same batch is asked; how far answers may differ, as a share of their length; how far probabilities may miss a sum of 1."""
FORWARDS = ASKED + 2
"""What is asked of each of the samples: the same again, and in two batches of twice each half of them."""
MASKED = 0.002
"""The share of samples that an attack without gradients may break after the others."""


def about_modes(model: nn.Module) -> list[str]:
    """`train-mode` if any module is in training mode: called after model.eval(), or on a model as its owner gave it."""
    return ["train-mode"] if any(module.training for module in model.modules()) else []


@torch.no_grad()
def about_outputs(logits: Callable[[Tensor], Tensor], x: Tensor) -> list[str]:
    """Flags of the answers to images x (n, ...): `randomised`, `train-mode`, `probabilities`, `dynamic-forward`.

    train-mode: what a row gets depends on what shares its batch, as under BatchNorm that takes its statistics from the batch.
    """
    with _counted() as solved:
        first = logits(x)
    flags = []
    if any(_differ(logits(x), first) for _ in range(ASKED - 1)):
        flags.append("randomised")
    some = x[: max(1, len(x) // 2)]
    beside, among = logits(torch.cat([some, some])), logits(torch.cat([some, 1 - some]))
    if not flags and _differ(beside[: len(some)], among[: len(some)]):
        flags.append("train-mode")
    if bool(((first >= 0) & (first <= 1)).all()) and bool(((first.sum(1) - 1).abs() < SUMS).all()):
        flags.append("probabilities")
    if solved:
        flags.append("dynamic-forward")
    return flags


def has_gradient(logits: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether the answers to images x can be differentiated there at all, be the gradient 0; True where asking raises an error."""
    with contextlib.suppress(Exception), torch.enable_grad():
        x = x.detach().requires_grad_()
        answer = logits(x)
        return answer.requires_grad and torch.autograd.grad(answer.sum(), x, allow_unused=True)[0] is not None
    return True


def _differ(logits: Tensor, first: Tensor) -> bool:
    scale = torch.linalg.vector_norm(first.double(), dim=1, keepdim=True).clamp_min(1e-10)
    return bool((((logits.double() - first) / scale).abs() > RANDOM).any())


@contextlib.contextmanager
def _counted() -> Iterator[list[str]]:
    """Gradients that are taken meanwhile, by whatever name."""
    taken: list[str] = []
    run = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def watched(*args: Any, **given: Any) -> Any:
        taken.append("backward")
        return run(*args, **given)

    torch.autograd._engine_run_backward = watched  # type: ignore[attr-defined]
    try:
        yield taken
    finally:
        torch.autograd._engine_run_backward = run  # type: ignore[attr-defined]


def masked(survivors: dict[str, Tensor], blind: str = "square") -> bool:
    """Whether the attack `blind`, which uses no gradients, broke more than 0.2 % of all samples after others had tried."""
    names = list(survivors)
    if blind not in names or names.index(blind) == 0:
        return False
    before, after = survivors[names[names.index(blind) - 1]], survivors[blind]
    return float((before & ~after).double().mean()) > MASKED
