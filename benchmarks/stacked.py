"""Does it pay to train several networks as one stacked model? A step of each one after the other, against one step of all (torch.func).

    python benchmarks/stacked.py [--models 3 5 15] [--rounds 5] [--device cpu|cuda]

MLP-300-100, batch 60, Adam, and LeNet 20-50-500, batch 64, SGD; the two take turns, the ratio is that of the medians. Stacked, the
forward pass is vmapped over the networks' parameters and a batch of each, the sum of the losses is differentiated once, and one fused
optimizer updates all. Noise of MNIST's shape: the arithmetic does not care.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from machine import line
from rtbench.builtin.trainers.descent import make_optimizer
from rtbench.engine.bind import Binder
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "MLP-300-100": ({"use": "mlp"}, "adam", 60),
    "LeNet": ({"use": "lenet", "channels": [20, 50], "hidden": 500}, "sgd", 64),
}  # fmt: skip


def network(wanted: dict[str, Any], device: str) -> nn.Module:
    found = catalogue()
    part = Resolver({}, found)("architecture", wanted, "net")
    model: nn.Module = Binder(found, 0, torch.Generator()).part("architecture", part)(shape=(1, 28, 28), classes=10)
    return model.to(device)


Way = tuple[Callable[[], None], Callable[[], list[Tensor]]]
"""A step of all networks, and their parameters as they are, (networks, ...) each."""


def one_by_one(models: list[nn.Module], optimizer: str, x: Tensor, y: Tensor) -> Way:
    opts = [make_optimizer(optimizer, list(model.parameters()), 1e-3, 0.9, False, 0.0) for model in models]

    def step() -> None:
        for model, opt, images, labels in zip(models, opts, x, y, strict=True):
            opt.zero_grad()
            cross_entropy(model(images), labels).backward()
            opt.step()

    return step, lambda: [torch.stack(same) for same in zip(*(model.parameters() for model in models), strict=True)]


def stacked(models: list[nn.Module], optimizer: str, x: Tensor, y: Tensor) -> Way:
    parameters, buffers = stack_module_state(models)
    shell = copy.deepcopy(models[0]).to("meta")
    opt = make_optimizer(optimizer, list(parameters.values()), 1e-3, 0.9, False, 0.0)
    forward = vmap(lambda own, held, images: functional_call(shell, (own, held), (images,)))

    def step() -> None:
        opt.zero_grad()
        logits = forward(parameters, buffers, x)
        (cross_entropy(logits.flatten(0, 1), y.flatten()) * len(models)).backward()
        opt.step()

    return step, lambda: list(parameters.values())


def seconds(step: Callable[[], None], device: str, least: float = 0.5) -> float:
    """Per call."""
    step()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < least:
        step()
        done += 1
        if device != "cpu":
            torch.cuda.synchronize()
    return (time.perf_counter() - started) / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="*", default=[3, 5, 15])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(line(chosen.device))
    for name, (wanted, optimizer, batch) in CASES.items():
        for k in chosen.models:
            x, y = torch.rand(k, batch, 1, 28, 28, device=chosen.device), torch.randint(0, 10, (k, batch), device=chosen.device)
            models = [network(wanted, chosen.device) for _ in range(k)]
            ways = [way(copy.deepcopy(models), optimizer, x, y) for way in (one_by_one, stacked)]
            for step, _ in ways:
                step()
            apart = max(float((a - b).detach().abs().max()) for a, b in zip(*(parameters() for _, parameters in ways), strict=True))
            assert apart < 1e-4, "both ways take the same step"
            times = [[seconds(step, chosen.device) for step, _ in ways] for _ in range(chosen.rounds)]
            alone, together = (1e3 * statistics.median(each) for each in zip(*times, strict=True))
            print(f"{name}, {k} networks: {alone:.2f} ms one by one, {together:.2f} ms stacked: {alone / together:.2f}x", flush=True)


if __name__ == "__main__":
    main()
