"""Accuracy under an attack, judged by the harness, with a bit per sample; and the mean of an objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rtbench.builtin.probes.samples import Batch, Count, Rule, Seed, Where, chosen, count, rechecked
from rtbench.data.splits import take
from rtbench.parts.kinds import Measure, Passes, declare
from rtbench.parts.knobs import Attack, Objective


def predicted(knobs: dict[str, Any], sizes: dict[str, int], nested: Callable[..., Passes]) -> Passes:
    """One clean and one final forward a sample, and what the attack takes; that again of those attacked in float32 after bfloat16."""
    n = count(knobs, sizes)
    forwards, gradients = nested("attack", knobs["attack"])
    again = rechecked(knobs, n)
    return n + (n + again) * (forwards + 1 if forwards else 0), (n + again) * gradients


@declare(passes=predicted, witnesses=True)
def accuracy(
    model: nn.Module, data: Any, loop: Any, *,
    attack: Attack = "none",
    split: Where = "test",
    samples: Count = None,
    rule: Rule = "first",
    sample_seed: Seed = 0,
    batch: Batch = 512,
) -> Measure:  # fmt: skip
    """The share of samples classified rightly both clean and under the attack; "none" gives clean accuracy.

    Keeps per sample: id, robust, clean, both margins, the bits of the attack's own parts, and its passes where the attack counts them.
    Where the attack searches in bfloat16, the first 64 samples that it leaves robust are attacked again in float32: "missed" is the share
    that this breaks, per sample it keeps which were asked and which held, and flags "bf16-missed" if one did not. Verdicts stay.
    Flags "chance-level" where clean accuracy is not above what always answering the commonest class would get (lower end of the 95 %
    Wilson interval).

    attack: the attack, with its norm and eps
    split: test, valid or train
    samples: how many; all if not given
    rule: the first ones, random ones, or random with equal shares of the classes
    sample_seed: draws the samples, the same ones for every model, trial and attack
    batch: samples attacked at a time
    """
    part, positions = chosen(data, split, samples, rule, sample_seed)
    outcome = attack(model, part, positions, loop, batch)
    numbers: dict[str, float | None] = {"": outcome.accuracy}
    bits = {
        "ids": outcome.ids, "robust": outcome.robust.byte(), "clean": outcome.clean.byte(), "margin": outcome.margin,
        "clean.margin": outcome.clean_margin, **outcome.passes,
    }  # fmt: skip
    for name, survived in outcome.inner.items():
        numbers[name] = float(survived.double().mean())
        bits[f"robust.{name}"] = survived.byte()
    if outcome.recheck is not None:
        numbers["missed"] = outcome.recheck.missed
        bits |= {"exact.asked": outcome.recheck.asked.byte(), "exact.held": outcome.recheck.held.byte()}
    witness = None if outcome.shelf is None else outcome.shelf.tensors()
    flags = (*outcome.flags, *about_chance(outcome))
    return Measure(numbers, bits, flags, about={"split": split, "samples": len(positions)}, witness=witness)


def about_chance(outcome: Any) -> list[str]:
    """The flag of a network whose clean verdicts are no better than a constant answer."""
    return ["chance-level"] if at_chance(int(outcome.clean.sum()), int(torch.bincount(outcome.y).max()), len(outcome.y)) else []


def at_chance(right: int, commonest: int, n: int) -> bool:
    """Whether `right` of n is not distinguishable from answering one class, `commonest` of n, by the 95 % Wilson interval."""
    z, p = 1.96, right / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n) <= commonest / n


def loss(
    model: nn.Module, data: Any, *,
    objective: Objective = "natural",
    split: Where = "test",
    samples: Count = None,
    rule: Rule = "first",
    sample_seed: Seed = 0,
    batch: Batch = 512,
) -> Measure:  # fmt: skip
    """The mean of an objective over samples of a split, in eval mode.

    objective: what is averaged, "natural" is cross-entropy
    split: test, valid or train
    samples: how many; all if not given
    rule: the first ones, random ones, or random with equal shares of the classes
    sample_seed: draws the samples
    batch: samples at a time
    """
    part, positions = chosen(data, split, samples, rule, sample_seed)
    total = 0.0
    for start in range(0, len(positions), batch):
        x, y = take(part, positions[start : start + batch])
        total += float(objective(model, x, y).detach().double().sum())
    return Measure({"": total / len(positions)}, about={"split": split})
