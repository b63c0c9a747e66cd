"""TRADES: accuracy on clean images traded against agreement between clean and attacked ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtbench.builtin.objectives.cross_entropy import Smooth, Weight, natural, penalised
from rtbench.parts.kinds import Passes, declare
from rtbench.parts.knobs import Attack


def _passes(knobs: dict[str, Any], sizes: dict[str, int], nested: Callable[..., Passes]) -> Passes:
    """The attack's passes where the KL term has a weight, and a forward and gradient for clean and for attacked images."""
    attacked = nested("attack", knobs["attack"]) if knobs["beta"] > 0 else (0, 0)
    losses = 2 if attacked[0] else 1
    return attacked[0] + losses, attacked[1] + losses


@declare(passes=_passes)
def trades(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    rng: torch.Generator,
    *,
    attack: Attack,
    beta: Weight = 6.0,
    smooth: Smooth = 0.0,
    l1: Weight = 0.0,
) -> Tensor:
    """Cross-entropy of clean images plus beta times KL(clean output || attacked output): losses (n,).

    The divergence is the sum over classes of p(x) * (log p(x) - log p(x_adv)), the direction of the authors' code. Its gradient flows
    through both outputs; adversarial examples are constants. The paper's attack climbs the same divergence: pgd with loss = "kl",
    start = "gaussian", start_scale = 0.001. Clean and attacked images pass as two batches, so each moves BatchNorm's statistics.
    Source: Zhang, Yu, Jiao, Xing, El Ghaoui & Jordan 2019, arXiv:1901.08573.

    attack: crafts the adversarial examples against the model as it is; none leaves the clean loss alone
    beta: weight of the divergence, 1 / lambda in the paper
    smooth: label smoothing of the clean loss, the share of the label spread evenly over all classes
    l1: weight of the L1 norm of all prunable weights, added to every sample's loss
    """
    x_adv = attack(model, x, y, rng) if beta > 0 else x
    if x_adv is x:
        return natural(model, x, y, smooth=smooth, l1=l1)
    clean, attacked = model(x), model(x_adv.detach())
    losses = functional.cross_entropy(clean, y, reduction="none", label_smoothing=smooth)
    divergence = functional.kl_div(attacked.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
    return penalised(losses + beta * divergence, model, l1)
