"""Native AutoAttack against three seeds of pyautoattack, verdict by verdict, as a Markdown table.

    python benchmarks/agreement.py [--data digits mnist] [--net mlp cnn] [--norm linf] [--kept dense pruned] [--samples 300] [--seeds 3]

MLP and CNN, trained naturally and on PGD, dense and with 90 % of the weights pruned and the others trained on. Per attack: robust accuracy,
ours and the range of theirs; then how many samples are judged differently, ours against each of their seeds at most, and the most
between two of their seeds. "holds" says whether after each attack ours is at most 0.2 points above their worst seed and the
disagreement at most 0.2 points above theirs, one sample being the least that can be told.

Networks and pyautoattack's verdicts are kept in the folder --folder: run again after a kill, or after a change of the native attack.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path

import torch
from rtbench_autoattack import official
from small import images, network
from torch import Tensor, nn

from machine import line
from rtbench.data.splits import Split, take
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.parts.noise import CounterNoise
from rtbench.parts.threats import Threat
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

RADII = {
    ("digits", "linf"): ("1/25", "1/10"), ("digits", "l2"): ("1/4", "1/2"), ("mnist", "mlp", "linf"): ("1/20", "1/10"),
    ("mnist", "cnn", "linf"): ("1/10", "3/10"), ("mnist", "l2"): ("1/2", "3/2"),
}  # fmt: skip
"""Radii at which the natural and the PGD-trained network are attacked."""
TRAINED_AT = {"digits": 0.1, ("mnist", "mlp"): 0.1, ("mnist", "cnn"): 0.3}


def radius(data: str, net: str, norm: str, robust: bool) -> str:
    pair = RADII.get((data, norm)) or RADII.get((data, net, norm))
    assert pair is not None
    return pair[robust]


def samples(data: str, n: int) -> Split:
    """n images that were not trained on."""
    if data == "digits":
        whole = images(data)
        parts = [take(part, torch.arange(len(part))) for part in (whole.test, whole.valid) if part is not None]
        x, y = (torch.cat(pair)[:n] for pair in zip(*parts, strict=True))
    else:
        x, y = take(images(data).test, torch.arange(n))
    return Split(x, y, torch.arange(len(y)))


def theirs(model: nn.Module, split: Split, threat: Threat, seed: int, file: Path) -> dict[str, Tensor]:
    """pyautoattack's verdicts per attack."""
    if not file.exists():
        x, y = take(split, torch.arange(len(split)))
        found = official(model, x, y, threat, CounterNoise(seed, torch.arange(len(y))), batch=1000).outcomes
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: bits.cpu() for name, bits in found.items()}, file)
    return dict(torch.load(file, weights_only=True))


def compare(model: nn.Module, split: Split, threat: Threat, batch: int, files: list[Path]) -> list[str]:
    """One cell per attack, one of disagreements, and whether all is as it should be."""
    part = Resolver({}, catalogue())("attack", {"use": "autoattack", "norm": threat.norm, "eps": str(threat.eps)}, "")
    n = len(split)
    ours = Binder(catalogue(), 0, torch.Generator()).judged(part)(model, split, torch.arange(n), Loop(), batch)
    seeds = [theirs(model, split, threat, seed, file) for seed, file in enumerate(files)]
    cells, apart, away, slack, holds = [f"{float(ours.clean.double().mean()):.1%}"], [], [], max(1, round(0.002 * n)), True
    for name, bits in ours.inner.items():
        bare = [seed[name] & ours.clean for seed in seeds]
        counts = [int(found.sum()) for found in bare]
        cells.append(f"{int(bits.sum()) / n:.2%} ({min(counts) / n:.2%} to {max(counts) / n:.2%})")
        apart.append(max(int((a != b).sum()) for a, b in combinations(bare, 2)))
        away.append(max(int((bits != found).sum()) for found in bare))
        holds &= int(bits.sum()) <= max(counts) + slack and away[-1] <= apart[-1] + slack
    told = "/".join(map(str, away)), "/".join(map(str, apart))
    return [*cells, f"{told[0]} ({told[1]})", "yes" if holds else "**no**"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="*", default=["digits"], choices=["digits", "mnist"])
    parser.add_argument("--net", nargs="*", default=["mlp", "cnn"])
    parser.add_argument("--norm", nargs="*", default=["linf"], choices=["linf", "l2"])
    parser.add_argument("--train", nargs="*", default=["natural", "pgd"])
    parser.add_argument("--kept", nargs="*", default=["dense", "pruned"], choices=["dense", "pruned"])
    for name, number in {"samples": 300, "seeds": 3, "batch": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/rtbench-agreement"))
    chosen = parser.parse_args()
    print(f"{line()}; {chosen.samples} samples, {chosen.seeds} seeds\n")
    print("| network | clean | APGD-CE | APGD-T | FAB-T | Square | judged differently, per attack (among theirs) | holds |")
    print("|---|---|---|---|---|---|---|---|")
    for data, norm, net, train, kept in product(chosen.data, chosen.norm, chosen.net, chosen.train, chosen.kept):
        pruned = kept == "pruned"
        eps = (TRAINED_AT.get(data) or TRAINED_AT[data, net]) if train == "pgd" else 0.0
        model, split = network(data, net, float(eps), pruned, chosen.folder), samples(data, chosen.samples)
        far = radius(data, net, norm, train == "pgd")
        name = f"{data} {net}, {train}, {'10 % kept' if pruned else 'dense'}, {norm} {far}"
        stem = f"{data}-{net}-{train}-{pruned}-{norm}-{far.replace('/', '_')}-{len(split)}"
        files = [chosen.folder / f"{stem}-{seed}.pt" for seed in range(chosen.seeds)]
        print("| " + " | ".join([name, *compare(model, split, Threat(norm, Fraction(far)), chosen.batch, files)]) + " |", flush=True)


if __name__ == "__main__":
    main()
