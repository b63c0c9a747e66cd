"""Does it pay to train several networks as one (`rtbench run --stack N`)? The same steps of `sgd`, one network after the other and as one.

    python benchmarks/stacked.py [--networks 3 5 20] [--rounds 3] [--seconds 3] [--device cpu|cuda] [--threads 1]

MLP-300-100 (batch 60, Adam) and LeNet 20-50-500 (batch 64, SGD), natural and against PGD with 10 steps; the two ways take turns, the ratio
is that of the medians. Noise of MNIST's shape: the arithmetic does not care. On a CPU one thread, as a worker of `run` has.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from machine import line
from rtbench.data.splits import Data, Split
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.parts.kinds import stacked
from rtbench.parts.masks import ones
from rtbench.parts.noise import Generators
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

NETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MLP-300-100": ({"use": "mlp"}, {"optimizer": "adam", "lr": 1.2e-3, "batch": 60}),
    "LeNet": ({"use": "lenet", "channels": [20, 50], "hidden": 500}, {"lr": 0.01, "batch": 64}),
}
PGD = {"use": "robust", "attack": {"use": "pgd", "norm": "linf", "eps": 0.3, "step": 0.05, "steps": 10}, "mix": 0.5}
FOUND = catalogue()
Knobs = dict[str, Any]


def data(device: str) -> Data:
    def split(n: int) -> Split:
        return Split(torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (n,)), torch.arange(n))

    return Data(split(6000), split(100), None, None, (1, 28, 28), 10).to(device)


def calls(net: Knobs, trainer: Knobs, k: int, found: Data) -> tuple[list[Knobs], Callable[[list[int]], Knobs]]:
    """The keyword arguments of k trainings, and those of some of them together, as the engine makes them."""
    resolve = Resolver({}, FOUND)
    part, rngs = resolve("trainer", trainer, "fit"), [torch.Generator().manual_seed(seed) for seed in range(k)]
    made = []
    for rng in rngs:
        model = Binder(FOUND, 0, rng).part("architecture", resolve("architecture", net, "net"))(shape=found.shape, classes=found.classes)
        model, masks = model.to(found.train.device), ones(model.to(found.train.device))
        given = {"model": model, "masks": masks, "data": found, "rng": rng, "loop": Loop(model, masks, rng)}
        made.append({**given, **Binder(FOUND, 0, rng, found).values("trainer", part)})
    return made, lambda which: Binder(FOUND, 0, Generators(rngs[i] for i in which), found).values("trainer", part)


def seconds(net: Knobs, trainer: Knobs, k: int, found: Data, as_one: bool) -> float:
    """For k networks to take the trainer's steps."""
    sgd = FOUND.get("trainer", "sgd").function
    train = stacked(sgd)
    assert train is not None
    made, together = calls(net, trainer, k, found)
    started = time.perf_counter()
    if as_one:
        train(made, together)
    else:
        for call in made:
            sgd(**call)
    if found.train.device.type != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, nargs="*", default=[3, 5, 20])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="about, for each network alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(line(chosen.device))
    found = data(chosen.device)
    for name, (net, knobs) in NETS.items():
        for how, objective in (("natural", "natural"), ("PGD-10", PGD)):
            trainer = {"use": "sgd", **knobs, "objective": objective}
            seconds(net, {**trainer, "steps": 3}, 1, found, as_one=False)
            steps = max(10, int(chosen.seconds / (seconds(net, {**trainer, "steps": 20}, 1, found, as_one=False) / 20)))
            for k in chosen.networks:
                times = [[seconds(net, {**trainer, "steps": steps}, k, found, way) for way in (False, True)] for _ in range(chosen.rounds)]
                alone, as_one = (1e3 * statistics.median(each) / steps for each in zip(*times, strict=True))
                print(f"{name}, {how}, {k} networks, {steps} steps: {alone:.2f} ms a step one by one, {as_one:.2f} ms as one: "
                      f"{alone / as_one:.2f}x", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
