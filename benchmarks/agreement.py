"""Native AutoAttack against three seeds of pyautoattack, verdict by verdict, as a Markdown table.

    python benchmarks/agreement.py [--samples 300] [--seeds 3] [--norm linf] [--only mlp]

Networks on scikit-learn's digits: an MLP and a small CNN, trained naturally and on PGD, dense and with 90 % of the weights pruned and the
others trained on. Per attack: robust accuracy, ours and the range of theirs; in the end how many samples are judged differently, ours
against the worst of their seeds, and the most between two of their seeds.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from itertools import combinations, product

import torch
from rtbench_autoattack import official
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from machine import line
from rtbench.bind import Binder
from rtbench.data import Split
from rtbench.loop import Loop
from rtbench.noise import CounterNoise
from rtbench.plugins import catalogue
from rtbench.resolve import Resolver
from rtbench.threats import Threat

RADII = {"linf": {0.0: "1/25", 0.1: "1/10"}, "l2": {0.0: "1/4", 0.1: "1/2"}}
"""The radius that a network is attacked at, by the radius it was trained at."""


def images() -> tuple[Tensor, Tensor]:
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(raw.images, dtype=torch.float32).div(16).unsqueeze(1)[order], torch.tensor(raw.target)[order]


def trained(kind: str, eps: float, pruned: bool) -> nn.Module:
    torch.manual_seed(0)
    front: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    width = 512 if kind == "cnn" else 64
    model = nn.Sequential(*(front if kind == "cnn" else []), nn.Flatten(), nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, 10))
    fit(model, eps, 40, {})
    if pruned:
        weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
        sizes = torch.cat([w.detach().abs().flatten() for w in weights.values()]).sort().values
        cut = sizes[-len(sizes) // 10]
        fit(model, eps, 20, {name: w.detach().abs() >= cut for name, w in weights.items()})
    return model.eval()


def fit(model: nn.Module, eps: float, epochs: int, masks: dict[str, Tensor]) -> None:
    x, y = images()
    x, y = x[:1200], y[:1200]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            xb, yb = x[rows], y[rows]
            at = (xb + eps * (2 * torch.rand_like(xb) - 1)).clamp(0, 1) if eps else xb
            for _ in range(5 if eps else 0):
                at.requires_grad_()
                (slope,) = torch.autograd.grad(cross_entropy(model(at), yb), at)
                at = (at.detach() + eps / 2.5 * slope.sign()).clamp(xb - eps, xb + eps).clamp(0, 1)
            optimizer.zero_grad()
            cross_entropy(model(at), yb).backward()
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():
                    model.get_parameter(name).mul_(mask)
    optimizer.zero_grad()


def compare(model: nn.Module, threat: Threat, n: int, seeds: int) -> list[str]:
    """One cell per attack, and one of disagreements."""
    x, y = (part[1200 : 1200 + n] for part in images())
    part = Resolver({}, catalogue())("attack", {"use": "autoattack", "norm": threat.norm, "eps": str(threat.eps)}, "")
    split = Split(x, y, torch.arange(1200, 1200 + n))
    ours = Binder(catalogue(), 0, torch.Generator()).judged(part)(model, split, torch.arange(n), Loop(), 256)
    theirs = [official(model, x, y, threat, CounterNoise(seed, torch.arange(n)), batch=1000).outcomes for seed in range(seeds)]
    cells = [f"{float(ours.clean.double().mean()):.1%}"]
    for name, bits in ours.inner.items():
        found = [float((seed[name] & ours.clean).double().mean()) for seed in theirs]
        cells.append(f"{float(bits.double().mean()):.2%} ({min(found):.2%} to {max(found):.2%})")
    apart = [max(int((a[name] != b[name]).sum()) for a, b in combinations(theirs, 2)) for name in ours.inner]
    away = [max(int((bits != (seed[name] & ours.clean)).sum()) for seed in theirs) for name, bits in ours.inner.items()]
    return [*cells, f"{'/'.join(map(str, away))} ({'/'.join(map(str, apart))})"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--only", nargs="*", default=["mlp", "cnn"])
    chosen = parser.parse_args()
    print(f"{line()}; {chosen.samples} samples, {chosen.seeds} seeds\n")
    print("| network | clean | APGD-CE | APGD-T | FAB-T | Square | judged differently, per attack (among theirs) |")
    print("|---|---|---|---|---|---|---|")
    for kind, eps, pruned in product(chosen.only, (0.0, 0.1), (False, True)):
        radius = RADII[chosen.norm][eps]
        cells = compare(trained(kind, eps, pruned), Threat(chosen.norm, Fraction(radius)), chosen.samples, chosen.seeds)
        name = f"{kind}, {'PGD' if eps else 'natural'}, {'10 % kept' if pruned else 'dense'}, {chosen.norm} {radius}"
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
