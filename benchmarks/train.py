"""Training steps per second of the sgd trainer against a bare hand-written masked loop doing the same work.

    python benchmarks/train.py [--steps 400] [--rounds 5]

MLP-300-100, batch 60, Adam, 90 % pruned, natural and PGD-10; the two loops take turns, the ratio is that of the medians. Uses MNIST
where RTBENCH_DATA has it, else noise of the same shape (the arithmetic does not care).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from machine import line
from rtbench.data.splits import Data, Split
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.parts.masks import Masks, apply_, prunable
from rtbench.parts.meter import metered
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

EPS, STEP, STEPS = 0.3, 0.05, 10
FOUND = catalogue()


def images() -> Data:
    """MNIST, or noise of its shape."""
    root = os.environ.get("RTBENCH_DATA")
    if root and (Path(root) / "MNIST").is_dir():
        part = Resolver({}, FOUND)("dataset", "mnist", "mnist")
        loaded: Data = Binder(FOUND, 0, torch.Generator()).part("dataset", part)(root=Path(root))
        return loaded
    x = torch.randint(0, 256, (50_000, 1, 28, 28), dtype=torch.uint8)
    split = Split(x, torch.randint(0, 10, (50_000,)), torch.arange(50_000))
    return Data(split, split, None, None, (1, 28, 28), 10)


def network(data: Data) -> tuple[nn.Module, Masks]:
    torch.manual_seed(0)
    part = Resolver({}, FOUND)("architecture", {"use": "mlp", "bias": False}, "mlp")
    model: nn.Module = Binder(FOUND, 0, torch.Generator()).part("architecture", part)(shape=data.shape, classes=data.classes)
    masks = {name: torch.rand_like(model.get_parameter(name)) < 0.1 for name in prunable(model)}
    apply_(model, masks)
    return model, masks


def ours(data: Data, attack: str, steps: int) -> Callable[[], None]:
    model, masks = network(data)
    knobs: dict[str, Any] = {"use": "robust", "attack": "none"}
    if attack == "pgd":
        knobs["attack"] = {"use": "pgd", "norm": "linf", "eps": EPS, "step": STEP, "steps": STEPS}
    trainer = {"use": "sgd", "objective": knobs, "optimizer": "adam", "lr": 1.2e-3, "batch": 60, "steps": steps}
    part = Resolver({}, FOUND)("trainer", trainer, "fit")

    def run() -> None:
        rng = torch.Generator().manual_seed(0)
        counts: dict[str, int] = {}
        with metered(model, counts):
            Binder(FOUND, 0, rng, data).part("trainer", part)(model=model, masks=masks, data=data, rng=rng, loop=Loop(model, masks, rng))

    return run


def bare(data: Data, attack: str, steps: int, fused: bool) -> Callable[[], None]:
    """What one writes by hand: float images in memory, shuffled, masked by multiplying weights after each step."""
    model, masks = network(data)
    factors = {name: mask.float() for name, mask in masks.items()}
    x_all = data.train.x.float() / 255
    y_all = data.train.y

    def pgd(x: Tensor, y: Tensor) -> Tensor:
        x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_(True)
            (grad,) = torch.autograd.grad(cross_entropy(model(x_adv), y), x_adv)
            x_adv = (x_adv.detach() + STEP * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
        return x_adv

    def run() -> None:
        opt = torch.optim.Adam(model.parameters(), lr=1.2e-3, fused=fused)
        model.train()
        order = torch.randperm(len(x_all))
        for step in range(steps):
            chosen = order[(step * 60) % 49_980 :][:60]
            x, y = x_all[chosen], y_all[chosen]
            loss = cross_entropy(model(pgd(x, y) if attack == "pgd" else x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            with torch.no_grad():
                for name, factor in factors.items():
                    model.get_parameter(name).mul_(factor)

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    print(line())
    data = images()
    print(f"training images: {len(data.train)}")
    for attack, steps in (("none", chosen.steps * 4), ("pgd", chosen.steps)):
        runs = {"rtbench": ours(data, attack, steps), "bare": bare(data, attack, steps, False)}
        runs["bare, fused Adam"] = bare(data, attack, steps, True)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(chosen.rounds + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
        rate = {name: steps / statistics.median(found[1:]) for name, found in times.items()}
        print(f"{attack:5s} steps/s " + ", ".join(f"{name} {value:.0f}" for name, value in rate.items()), end="; ")
        print("ratio " + ", ".join(f"to {name} {rate['rtbench'] / rate[name]:.2f}" for name in list(rate)[1:]))


if __name__ == "__main__":
    main()
