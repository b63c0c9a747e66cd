"""Small networks for benchmarks: MLP and CNN on digits or MNIST, natural or PGD-trained, dense or with 90 % of the weights pruned.

Each is trained once and kept in a folder. RTBENCH_DATA says where MNIST is.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rtbench.commands.study import data_root
from rtbench.data.splits import Data, Split, batches
from rtbench.engine.context import Options, load_data
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

TRAINED = {"digits": 1200, "mnist": 20_000}
"""Training images used."""


def images(data: str) -> Data:
    """The data set by name."""
    return load_data(Resolver({}, catalogue())("dataset", {"use": data}, "--data"), catalogue(), Options(root=data_root(None)))


def network(data: str, kind: str, eps: float, pruned: bool, folder: Path) -> nn.Module:
    """The trained network, in eval mode. eps: radius of PGD training, 0 for natural training. Pruned ones are trained on."""
    torch.manual_seed(0)
    model = _built(data, kind)
    file = folder / f"{data}-{kind}-{eps}-{'pruned' if pruned else 'dense'}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    split = images(data).train
    epochs = 40 if data == "digits" else 10
    if pruned:
        model.load_state_dict(network(data, kind, eps, False, folder).state_dict())
        _fit(model, split, TRAINED[data], eps, epochs // 2, _largest(model, 0.1))
    else:
        _fit(model, split, TRAINED[data], eps, epochs, {})
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model.eval()


def _built(data: str, kind: str) -> nn.Module:
    side, hidden = (8, [100]) if data == "digits" else (28, [300, 100])
    if kind == "mlp":
        widths = [side * side, *hidden, 10]
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        return nn.Sequential(nn.Flatten(), *[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    halved = side // (2 if data == "digits" else 4)
    first = nn.Conv2d(1, 16, 3, padding=1) if data == "digits" else nn.Conv2d(1, 16, 4, stride=2, padding=1)
    front = [first, nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*front, nn.Linear(32 * halved * halved, 100), nn.ReLU(), nn.Linear(100, 10))


def _largest(model: nn.Module, keep: float) -> dict[str, Tensor]:
    """Masks of the largest weights over all layers."""
    weights = {name: p.detach().abs() for name, p in model.named_parameters() if p.dim() > 1}
    ranked = torch.cat([w.flatten() for w in weights.values()]).sort(descending=True).values
    return {name: w >= ranked[int(len(ranked) * keep)] for name, w in weights.items()}


def _fit(model: nn.Module, split: Split, n: int, eps: float, epochs: int, masks: dict[str, Tensor]) -> None:
    """Adam on the images, or on PGD with 7 steps around them, the radius growing over the first half of the epochs."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3 if n < 5000 else 1e-3)
    rng = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        radius = eps * (1 if masks else min(1, 2 * (epoch + 1) / epochs))
        for x, y in batches(split, 64 if n < 5000 else 128, torch.randperm(n, generator=rng)):
            optimizer.zero_grad()
            cross_entropy(model(_pgd(model, x, y, radius, rng) if eps else x), y).backward()
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():
                    model.get_parameter(name).mul_(mask)
    optimizer.zero_grad()


def _pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, rng: torch.Generator) -> Tensor:
    at = (x + eps * (2 * torch.rand(x.shape, generator=rng) - 1)).clamp(0, 1)
    for _ in range(7):
        at.requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model(at), y), at)
        at = (at.detach() + eps / 3 * slope.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return at
