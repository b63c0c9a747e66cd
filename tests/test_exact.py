"""Tiny ReLU networks, solved exactly: what interval bounds certify is robust, and what is robust survives the attack.

The exact answer: a network of one hidden layer is linear where the signs of its hidden units are fixed, so the lead of a wrong class
over the label has its maximum over a linf ball in one of finitely many linear programs. Under l2 the plane is searched on a fine grid.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import judged
from rtbench.data.splits import Split
from rtbench.engine.loop import Loop
from rtbench.parts.threats import radius

CLASSES, SAMPLES, EDGE = 4, 40, 1e-5
"""EDGE: a lead of the best wrong class this close to 0 is a tie for float32."""


def network(side: tuple[int, int], hidden: int, seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """One hidden layer, trained until it is mostly right on images of Gaussian blobs; also images and labels."""
    torch.manual_seed(seed)
    pixels = side[0] * side[1]
    centres = 0.2 + 0.6 * torch.rand(CLASSES, pixels)
    y = torch.arange(SAMPLES * 2) % CLASSES
    x = (centres[y] + 0.12 * torch.randn(len(y), pixels)).clamp(0, 1).view(-1, 1, *side)
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), x[:SAMPLES], y[:SAMPLES]


def layers(model: nn.Sequential) -> tuple[Any, ...]:
    first, last = model[1], model[3]
    return tuple(t.detach().double().numpy() for t in (first.weight, first.bias, last.weight, last.bias))


def highest_lead(model: nn.Sequential, x: Tensor, y: int, eps: float) -> float:
    """The largest lead of a wrong class over the label within the linf ball and the box, by linear programs."""
    w, b, v, c = layers(model)
    at = x.double().flatten().numpy()
    lower, upper = np.maximum(at - eps, 0), np.minimum(at + eps, 1)
    middle, spread = w @ (lower + upper) / 2 + b, np.abs(w) @ (upper - lower) / 2
    choices = [[True] if m - s > 0 else [False] if m + s < 0 else [True, False] for m, s in zip(middle, spread, strict=True)]
    best = -np.inf
    for on in product(*choices):
        active = np.array(on)
        sign = np.where(active, -1.0, 1.0)[:, None]  # an active unit is at least 0: -(wx + b) <= 0
        within = {"A_ub": sign * w, "b_ub": -sign[:, 0] * b, "bounds": list(zip(lower, upper, strict=True))}
        for other in set(range(CLASSES)) - {y}:
            slope = (v[other] - v[y]) * active
            found = linprog(-(slope @ w), **within, method="highs")
            if found.status == 0:
                best = max(best, -found.fun + slope @ b + c[other] - c[y])
    return best


def certified(model: nn.Sequential, x: Tensor, y: int, eps: float) -> bool:
    """Whether interval bounds alone prove that no wrong class reaches the label (Gowal et al. 2018, arXiv:1810.12715)."""
    w, b, v, c = layers(model)
    at = x.double().flatten().numpy()
    lower, upper = np.maximum(at - eps, 0), np.minimum(at + eps, 1)
    middle, spread = w @ (lower + upper) / 2 + b, np.abs(w) @ (upper - lower) / 2
    low, high = np.maximum(middle - spread, 0), np.maximum(middle + spread, 0)
    leads = []
    for other in set(range(CLASSES)) - {y}:
        slope = v[other] - v[y]
        leads.append(np.where(slope > 0, high, low) @ slope + c[other] - c[y])
    return bool(max(leads) < 0)


def survivors(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: str, use: str, **knobs: Any) -> Tensor:
    """Which samples the engine leaves robust."""
    attack = judged(use, norm, eps, seed=0, **knobs)
    return attack(model, Split(x, y, torch.arange(len(y))), torch.arange(len(y)), Loop(), 64).robust


@pytest.mark.parametrize(("seed", "eps"), [(0, "1/20"), (1, "3/20"), (2, "1/20")])
def test_certified_is_robust_and_robust_survives_linf(seed: int, eps: str) -> None:
    model, x, y = network((2, 2), 6, seed)
    far = radius(Fraction(eps))
    leads = torch.tensor([highest_lead(model, image, int(label), far) for image, label in zip(x, y, strict=True)])
    proved = torch.tensor([certified(model, image, int(label), far) for image, label in zip(x, y, strict=True)])
    robust, fragile = leads < -EDGE, leads > EDGE
    survived = survivors(model, x, y, "linf", eps, use="autoattack")
    assert not bool((proved & fragile).any())
    assert not bool((robust & ~survived).any()), "an attack broke what cannot be broken"
    # A wide radius holds regions without a slope towards them: pyautoattack misses one sample here with every other seed, too.
    assert int((fragile & survived).sum()) <= 1, "AutoAttack missed what the linear programs broke"
    assert 0 < int(robust.sum()) < SAMPLES and int(proved.sum()) <= int(robust.sum())


@pytest.mark.parametrize(
    "use", [{"use": "pgd", "steps": 20}, {"use": "apgd"}, {"use": "fab", "targets": 3}, {"use": "square", "queries": 300}]
)
def test_no_attack_alone_breaks_what_cannot_be_broken(use: dict[str, Any]) -> None:
    model, x, y = network((2, 2), 6, 7)
    leads = torch.tensor([highest_lead(model, image, int(label), 0.1) for image, label in zip(x, y, strict=True)])
    survived = survivors(model, x, y, "linf", "1/10", **use)
    assert not bool(((leads < -EDGE) & ~survived).any())
    assert float(((leads > EDGE) & survived).sum()) <= 0.1 * SAMPLES


def lead_on_grid(model: nn.Module, x: Tensor, y: int, eps: float) -> float:
    """The largest lead of a wrong class over the label on a polar grid of the l2 disc within the box, two pixels."""
    angle, far = torch.linspace(0, 2 * torch.pi, 721).double(), torch.linspace(0, eps, 101).double()
    step = torch.stack([torch.cos(angle)[:, None] * far, torch.sin(angle)[:, None] * far], -1).view(-1, 2)
    points = x.double().view(1, 2) + step
    points = points[((points >= 0) & (points <= 1)).all(1)].float()
    logits = model(points.view(-1, 1, 1, 2)).double()
    label = logits[:, y].clone()
    logits[:, y] = -torch.inf
    return float((logits.amax(1) - label).max())


@pytest.mark.parametrize("seed", range(2))
def test_robust_survives_l2(seed: int) -> None:
    model, x, y = network((1, 2), 8, seed)
    leads = torch.tensor([lead_on_grid(model, image, int(label), 0.1) for image, label in zip(x, y, strict=True)])
    parts = [{"use": "apgd"}, {"use": "apgd", "loss": "dlr-targeted", "targets": 3}, {"use": "fab", "targets": 3}]
    survived = torch.stack([survivors(model, x, y, "l2", "1/10", **part) for part in parts]).all(0)
    near = 0.02  # the grid misses the exact maximum by less
    assert not bool(((leads < -near) & ~survived).any())
    assert not bool(((leads > EDGE) & survived).any())
    assert 0 < int((leads < 0).sum()) < SAMPLES
