"""Cross-entropy on clean and on attacked images: natural and adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtbench.parts.kinds import Passes, declare
from rtbench.parts.knobs import Attack, Range
from rtbench.parts.masks import prunable

Smooth = Annotated[float, Range("[0, 1)")]
Weight = Annotated[float, Range("[0, inf)")]


def _robust_passes(knobs: dict[str, Any], sizes: dict[str, int], nested: Callable[..., Passes]) -> Passes:
    """The attack's passes where its loss has a weight, and a forward and gradient for each loss that has one."""
    attacked = nested("attack", knobs["attack"]) if knobs["mix"] > 0 else (0, 0)
    losses = 2 if attacked[0] and knobs["mix"] < 1 else 1
    return attacked[0] + losses, attacked[1] + losses


@declare(passes=lambda knobs, sizes, nested: (1, 1))
def natural(model: nn.Module, x: Tensor, y: Tensor, *, smooth: Smooth = 0.0, l1: Weight = 0.0) -> Tensor:
    """Cross-entropy of clean images: losses (n,).

    smooth: label smoothing, the share of the label spread evenly over all classes
    l1: weight of the L1 norm of all prunable weights, added to every sample's loss
    """
    return penalised(_losses(model, x, y, smooth), model, l1)


@declare(passes=_robust_passes)
def robust(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    rng: torch.Generator,
    *,
    attack: Attack = "none",
    mix: Annotated[float, Range("[0, 1]")] = 1.0,
    smooth: Smooth = 0.0,
    l1: Weight = 0.0,
) -> Tensor:
    """Cross-entropy of attacked images, or of a mix of clean and attacked ones: losses (n,).

    Source: Madry et al. 2018, arXiv:1706.06083; half and half: Goodfellow et al. 2015, arXiv:1412.6572. Adversarial examples are
    constants: no gradient flows through the attack. Only the forward passes that the mix needs are made.

    attack: crafts the adversarial examples against the model as it is
    mix: weight of the adversarial loss, the clean loss having the rest
    smooth: label smoothing, the share of the label spread evenly over all classes
    l1: weight of the L1 norm of all prunable weights, added to every sample's loss
    """
    x_adv = attack(model, x, y, rng) if mix > 0 else x
    if x_adv is x:
        return natural(model, x, y, smooth=smooth, l1=l1)
    losses = _losses(model, x_adv.detach(), y, smooth)
    if mix < 1:
        losses = mix * losses + (1 - mix) * _losses(model, x, y, smooth)
    return penalised(losses, model, l1)


def _losses(model: nn.Module, x: Tensor, y: Tensor, smooth: float) -> Tensor:
    return functional.cross_entropy(model(x), y, reduction="none", label_smoothing=smooth)


def penalised(losses: Tensor, model: nn.Module, l1: float) -> Tensor:
    """The losses with `l1` times the L1 norm of all prunable weights added to each."""
    if l1 == 0:
        return losses
    return losses + l1 * torch.stack([model.get_parameter(name).abs().sum() for name in prunable(model)]).sum()
