"""SNIP, pruning before training. Source: Lee, Ajanthan & Torr 2019, arXiv:1810.02340."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from rtbench import Objective, OneOf, Range, hookimpl, keep_top, take


def snip(
    model: nn.Module,
    masks: dict[str, Tensor],
    data: Any,
    rng: torch.Generator,
    *,
    keep: Annotated[float | None, Range("(0, 1]"), OneOf("amount")] = None,
    drop: Annotated[float | None, Range("[0, 1)"), OneOf("amount")] = None,
    batch: Annotated[int, Range("[1, inf)")] = 256,
    objective: Objective = "robust",
) -> dict[str, Tensor]:
    """Keeps the weights whose removal would change the loss most, to first order: the largest |w * dloss/dw| in the whole network.

    One random batch of training samples is used. A layer that the loss does not reach scores 0. Raises UserError on scores that are NaN.

    keep: share of all prunable weights to keep, exactly
    drop: share of the weights left that is removed, exactly
    batch: how many training samples the sensitivity is measured on
    objective: the loss; a robust one makes it the sensitivity of the robust loss
    """
    x, y = take(data.train, torch.randperm(len(data.train), generator=rng)[:batch])
    weights = [model.get_parameter(name) for name in masks]
    slopes = torch.autograd.grad(objective(model, x, y).mean(), weights, materialize_grads=True)
    scores = {name: (weight * slope).abs() for name, weight, slope in zip(masks, weights, slopes, strict=True)}
    return keep_top(scores, masks, keep=keep, drop=drop)


@hookimpl
def rtbench_pruners() -> dict[str, Callable[..., Any]]:
    return {"snip": snip}
