"""The networks that the attack benchmark attacks: trained on first use, kept in --cache."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rtbench.commands.study import data_root
from rtbench.data.splits import Data, batches
from rtbench.engine.context import Options, build, load_data
from rtbench.parts.masks import Masks, apply_, keep_top, keep_top_each, ones
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

DENSITIES = ("0.5", "0.2", "0.1", "0.05")
PRUNERS = ("magnitude", "per-layer", "random")
CHILDREN = [f"{pruner}-{keep}" for pruner in PRUNERS for keep in DENSITIES]
TUNED = 100
"""Batches that a pruned child is trained on."""


def images(chosen: argparse.Namespace, device: str) -> Data:
    found = catalogue()
    part = Resolver({}, found)("dataset", {"use": chosen.data}, "--data")
    return load_data(part, found, Options(root=data_root(None), device=device)).to(device)


def network(chosen: argparse.Namespace, data: Data, child: str = "", device: str = "cpu") -> nn.Module:
    """The trained network, or a pruned child of it, in eval mode."""
    found = catalogue()
    torch.manual_seed(0)
    model = build(found, Resolver({}, found)("architecture", {"use": chosen.net}, "--net"), data, torch.Generator()).to(device)
    name = f"{chosen.data}-{chosen.net}-{chosen.train}-{chosen.eps}-{chosen.epochs}{'-' * bool(child)}{child}.pt"
    file = Path(chosen.cache) / name
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True, map_location=device))
        return model.eval()
    if child:
        model.load_state_dict(network(chosen, data, device=device).state_dict())
        masks = pruned(model, *child.rsplit("-", 1))
        apply_(model, masks)
        fit(model, data.train, chosen, masks)
    else:
        fit(model, data.train, chosen)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model.eval()


def pruned(model: nn.Module, pruner: str, keep: str) -> Masks:
    masks = ones(model)
    weights = {name: model.get_parameter(name).detach() for name in masks}
    scores = {name: torch.rand_like(w) if pruner == "random" else w.abs() for name, w in weights.items()}
    return (keep_top if pruner == "magnitude" else keep_top_each)(scores, masks, keep=Fraction(keep))


def fit(model: nn.Module, split: Any, chosen: argparse.Namespace, masks: Masks | None = None) -> None:
    """Adam on the images, or on PGD with 7 steps around them; with masks only some batches at the whole radius."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    rng, eps = torch.Generator().manual_seed(0), float(Fraction(chosen.eps))
    for epoch in range(1 if masks else chosen.epochs):
        order = torch.randperm(len(split), generator=rng)
        grown = 1 if masks else min(1, (epoch + 1) / max(1, chosen.epochs // 2))
        for x, y in batches(split, 128, order[: 128 * TUNED] if masks else order):
            if chosen.train == "pgd":
                x = pgd(model, x, y, eps * grown)
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            apply_(model, masks or {})
    optimizer.zero_grad()


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    at = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(7):
        at.requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model(at), y), at)
        at = (at.detach() + eps / 3 * slope.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return at
