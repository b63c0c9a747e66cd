"""The optimizers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def make_optimizer(name: str, train: list[nn.Parameter], lr: float, momentum: float, nesterov: bool, decay: float) -> torch.optim.Optimizer:
    """The optimizer, in torch's fused form where there is one."""
    if name == "sgd":
        return torch.optim.SGD(train, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(train, lr=lr, momentum=momentum, weight_decay=decay, foreach=True)
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(train, lr=lr, weight_decay=decay, fused=True)
