"""Native AutoAttack against pyautoattack, and against the floor: the bare passes that the protocol needs.

    python benchmarks/attack.py [--data mnist] [--net mlp] [--train pgd] [--eps 0.1] [--samples 1000] [--repeat 3] [--bf16]

Trains one network (a few epochs, kept in --cache), then in each repeat times the native attack, pyautoattack at each of --theirs batch
sizes, and the floor: 7,864 forwards per robust sample, 1,910 of them with a gradient, at the best of --batches. Prints seconds, shares
of the floor, accuracies per attack, and the medians of the ratios. RTBENCH_DATA says where the data is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from machine import line
from rtbench.api import data_root
from rtbench.bind import Binder
from rtbench.context import Options, build, load_data
from rtbench.data import Split, batches, take
from rtbench.evaluation.guard import frozen
from rtbench.evaluation.judge import Outcome
from rtbench.loop import Loop
from rtbench.noise import CounterNoise
from rtbench.plugins import Catalogue, catalogue
from rtbench.resolve import Resolver
from rtbench.threats import Threat

PASSES = 7864, 1910


def network(found: Catalogue, chosen: argparse.Namespace, device: str) -> tuple[nn.Module, Any]:
    """The trained network, and the data."""
    resolver = Resolver({}, found)
    data = load_data(resolver("dataset", {"use": chosen.data}, "--data"), found, Options(root=data_root(None), device=device)).to(device)
    torch.manual_seed(0)
    model = build(found, resolver("architecture", {"use": chosen.net}, "--net"), data, torch.Generator()).to(device)
    file = Path(chosen.cache) / f"{chosen.data}-{chosen.net}-{chosen.train}-{chosen.eps}-{chosen.epochs}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True, map_location=device))
    else:
        fit(model, data.train, chosen)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    return model.eval(), data


def fit(model: nn.Module, split: Any, chosen: argparse.Namespace) -> None:
    """Adam on the images, or on PGD with 7 steps around them."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    rng, eps = torch.Generator().manual_seed(0), float(Fraction(chosen.eps))
    for epoch in range(chosen.epochs):
        for x, y in batches(split, 128, torch.randperm(len(split), generator=rng)):
            if chosen.train == "pgd":
                x = pgd(model, x, y, eps * min(1, (epoch + 1) / max(1, chosen.epochs // 2)))
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    optimizer.zero_grad()


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    at = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(7):
        at.requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model(at), y), at)
        at = (at.detach() + eps / 3 * slope.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return at


def floor(model: nn.Module, x: Tensor, robust: int, sizes: list[int]) -> float:
    """Seconds that the bare passes of `robust` robust samples take at the best batch size."""
    best = []
    with frozen(model):
        for asks in (forward, gradient):
            best.append(min(per_sample(asks, model, x[torch.arange(size) % len(x)]) for size in sizes))
    return robust * (best[0] * (PASSES[0] - PASSES[1]) + best[1] * PASSES[1])


def forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def gradient(model: nn.Module, x: Tensor) -> None:
    x.requires_grad_()
    torch.autograd.grad(model(x).sum(), x)


def per_sample(asks: Any, model: nn.Module, x: Tensor, least: float = 0.3) -> float:
    asks(model, x)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < least:
        asks(model, x)
        done += len(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / done


def ours(
    found: Catalogue, model: nn.Module, split: Split, chosen: argparse.Namespace, positions: Tensor, precision: str
) -> tuple[float, Outcome]:
    wanted = {"use": "autoattack", "norm": chosen.norm, "eps": chosen.eps, "precision": precision}
    part = Resolver({}, found)("attack", wanted, "--attack")
    judged = Binder(found, 0, torch.Generator()).judged(part)
    started = time.perf_counter()
    outcome = judged(model, split, positions, Loop(), chosen.batch)
    return time.perf_counter() - started, outcome


def shares(outcome: Outcome) -> dict[str, float]:
    return {name: float(bits.double().mean()) for name, bits in outcome.inner.items()}


def theirs(model: nn.Module, x: Tensor, y: Tensor, chosen: argparse.Namespace, batch: int, seed: int) -> tuple[float, dict[str, float]]:
    from rtbench_autoattack import official

    started = time.perf_counter()
    with torch.no_grad():
        right = model(x).argmax(1) == y
    outcome = official(model, x, y, Threat(chosen.norm, Fraction(chosen.eps)), CounterNoise(seed, torch.arange(len(x))), batch=batch)
    return time.perf_counter() - started, {name: float((bits & right).double().mean()) for name, bits in outcome.outcomes.items()}


def told(who: str, seconds: float, accuracy: dict[str, float]) -> None:
    print(f"{who:<22} {seconds:8.2f} s  {'  '.join(f'{name} {value:.2%}' for name, value in accuracy.items())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    texts = {"data": "mnist", "net": "mlp", "train": "pgd", "eps": "0.1", "norm": "linf", "cache": "/tmp/rtbench-attack"}
    for name, default in texts.items():
        parser.add_argument(f"--{name}", default=default)
    for name, number in {"samples": 1000, "repeat": 3, "epochs": 10, "batch": 512, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--theirs", type=int, nargs="*", default=[250, 1000])
    parser.add_argument("--batches", type=int, nargs="*", default=[128, 256, 512, 1024])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--skip-official", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(line(device))
    found = catalogue()
    model, data = network(found, chosen, device)
    split, positions = data.test, torch.arange(chosen.samples)
    x, y = take(split, positions)
    against_floor, against_theirs, bf16 = [], [], []
    for repeat in range(chosen.repeat):
        seconds, outcome = ours(found, model, split, chosen, positions, "exact")
        told(f"native, batch {chosen.batch}", seconds, shares(outcome))
        bare = floor(model, x, int(outcome.robust.sum()), chosen.batches)
        against_floor.append(seconds / bare)
        print(f"{'floor':<22} {bare:8.2f} s", flush=True)
        if chosen.bf16:
            took, other = ours(found, model, split, chosen, positions, "bf16")
            told("native, bf16", took, shares(other))
            missed, more = int((other.robust & ~outcome.robust).sum()), int((outcome.robust & ~other.robust).sum())
            print(f"bf16 missed {missed} of {int((~outcome.robust & outcome.clean).sum())} broken samples, and broke {more} others")
            bf16.append(took)
        if not chosen.skip_official:
            best = float("inf")
            for batch in chosen.theirs:
                took, accuracy = theirs(model, x, y, chosen, batch, repeat)
                told(f"official, batch {batch}", took, accuracy)
                best = min(best, took)
            against_theirs.append(best / seconds)
    if bf16 and against_theirs:
        print(f"bf16: {seconds / statistics.median(bf16):.2f} times as fast as exact, {best / statistics.median(bf16):.2f} as pyautoattack")
    print(f"median: {statistics.median(against_floor):.2f} of the floor", end="")
    print(f", {statistics.median(against_theirs):.2f} times as fast as pyautoattack" if against_theirs else "")


if __name__ == "__main__":
    main()
