"""A training step in a process that uses freed memory again (`rtbench.engine.memory`), against one that does not: time and memory.

    python benchmarks/memory.py [--rounds 4] [--steps 30] [--threads 2]

Five convolutions on a batch of 128 images of CIFAR-10's size, noise: the arithmetic does not care. The two processes take turns.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from machine import line
from rtbench.engine.memory import reuse_freed

WIDTHS = (3, 32, 32, 64, 64, 128)
POOLED = (2, 4)
"""Convolutions after which the image is halved."""


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(WIDTHS), 1):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * (number in POOLED)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10)).to(memory_format=torch.channels_last)


def measured(steps: int) -> tuple[float, float]:
    """(seconds a step, the most memory in MB) of this process."""
    model, x, y = network(), torch.rand(128, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.randint(0, 10, (128,))
    opt = torch.optim.SGD(model.parameters(), 0.01)

    def step() -> None:
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()

    for _ in range(5):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=["reused", "usual"])
    for name, number in {"rounds": 4, "steps": 30, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.one:
        if chosen.one == "reused":
            reuse_freed()
        print(*measured(chosen.steps))
        return
    print(line())
    ratios: list[tuple[float, float]] = []
    for _ in range(chosen.rounds):
        pair = []
        for how in ("reused", "usual"):
            words = [sys.executable, __file__, "--one", how, "--steps", str(chosen.steps), "--threads", str(chosen.threads)]
            pair.append([float(word) for word in subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()])
            print(f"{how}: {1e3 * pair[-1][0]:.0f} ms a step, {pair[-1][1]:.0f} MB", flush=True)
        ratios.append((pair[0][0] / pair[1][0], pair[0][1] / pair[1][1]))
    time_, memory = (statistics.median(each) for each in zip(*ratios, strict=True))
    print(f"reused, of usual: time {time_:.2f}, memory {memory:.2f}")


if __name__ == "__main__":
    main()
