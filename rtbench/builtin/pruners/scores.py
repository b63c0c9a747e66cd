"""Pruners by a score that looks at no data: magnitude, normalised magnitude, chance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtbench.builtin.pruners.channels import channels_too
from rtbench.builtin.pruners.select import by_score
from rtbench.parts.masks import Masks


@by_score
def magnitude(model: nn.Module, masks: Masks, rng: torch.Generator) -> dict[str, Tensor]:
    """Keep the weights of largest |w|. Source: Han, Pool, Tran & Dally 2015, arXiv:1506.02626."""
    return {name: model.get_parameter(name).detach().abs() for name in masks}


@channels_too
@by_score
def normalised_magnitude(model: nn.Module, masks: Masks, rng: torch.Generator) -> dict[str, Tensor]:
    """Keep the weights of largest |w| / mean |w|, the mean over what is left of their layer.

    Source: Li et al. 2020, arXiv:2003.05733 (boosting tickets).
    """
    scores = {}
    for name, mask in masks.items():
        size = model.get_parameter(name).detach().abs()
        mean = size[mask].double().mean().clamp_min(torch.finfo(size.dtype).tiny)  # a layer of zeros has scores 0, not 0 / 0
        scores[name] = size / mean.to(size.dtype)
    return scores


@by_score
def random(model: nn.Module, masks: Masks, rng: torch.Generator) -> dict[str, Tensor]:
    """Keep weights drawn at random: the control for every pruner that claims to choose well."""
    return {
        name: torch.rand(mask.shape, generator=rng, dtype=torch.float64, device=rng.device).to(mask.device) for name, mask in masks.items()
    }
