"""How clearly a model is right about a sample."""

from __future__ import annotations

import torch
from torch import Tensor


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """float32 (n,): the logit of the label minus the highest other one, for logits (n, k); -inf where one of them is not finite.

    Negative is wrong and positive is right; at exactly 0 the first of the tied classes is the answer.
    """
    label = logits.gather(1, y[:, None]).squeeze(1)
    found = (label - logits.scatter(1, y[:, None], -torch.inf).amax(1)).float()
    return torch.where(torch.isfinite(logits).all(1), found, -torch.inf)
