"""What gradient attacks climb: per-sample losses (n,) of logits (n, k) and labels (n,), high where the label is missed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rtbench.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (Goodfellow, Shlens & Szegedy 2015, arXiv:1412.6572)."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The highest other logit minus the label's: positive where the label is missed (Carlini & Wagner 2017, arXiv:1608.04644)."""
    label = y[:, None]
    return logits.scatter(1, label, -torch.inf).max(1).values - logits.gather(1, label).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin over the distance from highest to third highest logit: blind to their scale (Croce & Hein 2020, arXiv:2003.01690).

    Raises UserError with fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise UserError(f'loss "dlr" needs at least 3 classes and there are {logits.shape[1]}; use "margin"')
    ranked = logits.topk(3, dim=1).values
    return margin(logits, y) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def kl_from(clean: Tensor) -> Loss:
    """KL(clean || adversarial) from clean logits (n, k), whatever the label (Zhang et al. 2019, TRADES, arXiv:1901.08573)."""
    reference = clean.log_softmax(1)

    def kl(logits: Tensor, y: Tensor) -> Tensor:
        return functional.kl_div(logits.log_softmax(1), reference, reduction="none", log_target=True).sum(1)

    return kl


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr}
