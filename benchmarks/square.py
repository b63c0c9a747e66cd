"""Square under l2 on six images where seeds differ: how many ours breaks, and pyautoattack's, as it is and with windows everywhere.

    python benchmarks/square.py [--seeds 20] [--who ours theirs everywhere] [--folder ...]

A PGD-trained MNIST CNN at radius 3/2, and the images that APGD and FAB-T leave and pyautoattack's Square breaks with some of three seeds.
5,000 queries on the schedule of 10,000, as in AutoAttack. pyautoattack draws the corner of a window below its limit, so that it never
reaches the last row and column; "everywhere" draws the limit as well.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import torch
from agreement import samples
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from small import network
from torch import Tensor, nn

import rtbench
from machine import line
from rtbench import Threat, declare, hookimpl
from rtbench.builtin.attacks.autoattack import SHRUNK
from rtbench.builtin.attacks.square import square
from rtbench.data.splits import Split, take
from rtbench.parts.slots import Native

IMAGES = (5, 22, 45, 46, 48, 144)
EPS = Fraction(3, 2)


@declare(norms=("l2",))
def of_autoattack(threat: Threat, shape: tuple[int, ...]) -> Native:
    """Square as AutoAttack runs it."""
    return Native((square("square", threat.norm, min(shape[1:]), over=SHRUNK),))


@hookimpl
def rtbench_attacks() -> dict[str, Callable[..., Native]]:
    return {"square-of-autoattack": of_autoattack}


def ours(model: nn.Module, split: Split, seed: int) -> int:
    """Images broken."""
    x, y = take(split, torch.arange(len(split)))
    found = rtbench.evaluate(model, x, y, "square-of-autoattack", "l2", EPS, ids=split.ids, seed=seed, plugins=[__file__])
    return len(y) - int(found.robust.sum())


def theirs(model: nn.Module, split: Split, seed: int) -> int:
    """Images broken."""
    x, y = take(split, torch.arange(len(split)))
    attack = AutoAttack(model, norm="L2", eps=float(EPS), seed=seed, device="cpu")
    attack.attacks_to_run = ["square"]
    found = attack.run_standard_evaluation(x, y, batch_size=1000)[0]
    with torch.no_grad():
        return int((model(found).argmax(1) != y).sum())


def everywhere(model: nn.Module, split: Split, seed: int) -> int:
    """Images that theirs breaks where windows may lie anywhere."""

    def drawn(self: SquareAttack, low: int = 0, high: int = 1, shape: tuple[int, ...] = (1,)) -> Tensor:
        return (low + (high + 1 - low) * torch.rand(shape)).long()

    with patch.object(SquareAttack, "random_int", drawn):
        return theirs(model, split, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--who", nargs="*", default=["ours", "theirs", "everywhere"], choices=["ours", "theirs", "everywhere"])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/rtbench-agreement"))
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)  # pyautoattack's progress
    print(line())
    model, split = network("mnist", "cnn", 0.3, False, chosen.folder), samples("mnist", max(IMAGES) + 1).subset(torch.tensor(IMAGES))
    for who in chosen.who:
        counts = [{"ours": ours, "theirs": theirs, "everywhere": everywhere}[who](model, split, seed) for seed in range(chosen.seeds)]
        error = statistics.stdev(counts) / len(counts) ** 0.5
        print(f"{who:10} breaks {statistics.mean(counts):.2f} +- {error:.2f} of {len(IMAGES)} images ({len(counts)} seeds)", flush=True)


if __name__ == "__main__":
    main()
