"""Adversarial examples of one network tried on another: transfer accuracy, and a pool of them before the white-box attack.

Sources: Papernot, McDaniel & Goodfellow 2016, arXiv:1605.07277 (transfer); Li et al. 2020 (Boosting Tickets), Table 6 (the matrix).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rtbench.builtin.probes.accuracy import accuracy, predicted
from rtbench.builtin.probes.samples import Batch, Count, Rule, Seed, Where, count
from rtbench.parts.kinds import Measure, Passes, declare
from rtbench.parts.knobs import Attack

BEATEN = 0.002
"""The share of samples, 2 at least, that others' examples may break beyond the white-box attack before it counts as beaten."""


def _bounded(knobs: dict[str, Any]) -> None:
    for attack in (knobs["attack"], knobs.get("source_attack")):
        if attack is not None and "norm" not in attack["knobs"]:
            raise ValueError(f'attack "{attack["use"]}" makes no adversarial examples; name one with norm and eps')


def _replayed(knobs: dict[str, Any], sizes: dict[str, int], nested: Any) -> Passes:
    """One clean forward and one of the borrowed example."""
    return 2.0 * count(knobs, sizes), 0.0


@declare(check=_bounded, passes=predicted)
def craft(
    model: Any, data: Any, loop: Any, *,
    attack: Attack,
    split: Where = "test",
    samples: Count = None,
    rule: Rule = "first",
    sample_seed: Seed = 0,
    batch: Batch = 512,
) -> Measure:  # fmt: skip
    """Accuracy under an attack, as `accuracy` has it, that keeps the adversarial examples for `transfer` and `pool`: 4 bytes a pixel.

    Plain attacks also attack what the network gets wrong already; native ones leave such a sample as it is.

    attack: the attack, with its norm and eps
    split: test, valid or train
    samples: how many; all if not given
    rule: the first ones, random ones, or random with equal shares of the classes
    sample_seed: draws the samples, the same ones for every model, trial and attack
    batch: samples attacked at a time
    """
    points: list[Tensor] = []

    def keeping(*given: Any) -> Any:
        outcome = attack(*given, keep=True)
        points.append(outcome.points)
        return outcome

    measured = accuracy(
        model, data, loop, attack=keeping, split=split, samples=samples, rule=rule, sample_seed=sample_seed, batch=batch
    )  # fmt: skip
    return measured._replace(samples={**measured.samples, "points": points[0]})


@declare(check=_bounded, passes=_replayed, sources="craft")
def transfer(
    model: Any, data: Any, loop: Any, source: dict[str, Tensor], *,
    attack: Attack,
    split: Where = "test",
    samples: Count = None,
    rule: Rule = "first",
    sample_seed: Seed = 0,
    batch: Batch = 512,
) -> Measure:  # fmt: skip
    """The share of samples classified rightly both clean and at the adversarial examples made on another network, one by one.

    Every sample that this network gets right is tried, also one that the other gets wrong clean.

    attack: what makes the examples on the other network, with its norm and eps
    split: test, valid or train
    samples: how many; all if not given
    rule: the first ones, random ones, or random with equal shares of the classes
    sample_seed: draws the samples, the same ones for every model, trial and attack
    batch: samples tried at a time
    """
    proposed = attack.proposing(source["ids"], source["points"])
    return accuracy(model, data, loop, attack=proposed, split=split, samples=samples, rule=rule, sample_seed=sample_seed, batch=batch)


@declare(check=_bounded, passes=_replayed, sources="craft")
def pool(
    model: Any, data: Any, loop: Any, sources: dict[str, dict[str, Tensor]], own: dict[str, Tensor], *,
    attack: Attack,
    source_attack: Attack | None = None,
    split: Where = "test",
    samples: Count = None,
    rule: Rule = "first",
    sample_seed: Seed = 0,
    batch: Batch = 512,
) -> Measure:  # fmt: skip
    """Accuracy under others' adversarial examples and then the attack on this network: a sample counts that survives all of them.

    "white-box" is the attack on this network alone, on all samples; "transfer" the others' examples alone, "transfer.NAME" one
    other's. Flags "transfer-beats-white-box" where those break more than 0.2 % of all samples, and at least 2, that the attack on this
    network, given all of them, did not.

    Keeps per sample: id, clean, which of these it survives, and the margin at each other network's example.

    attack: the attack on this network, with its norm and eps; others' examples are moved into its ball
    source_attack: what makes the examples on the others; `attack` if left out
    split: test, valid or train
    samples: how many; all if not given
    rule: the first ones, random ones, or random with equal shares of the classes
    sample_seed: draws the samples, the same ones for every model, trial and attack
    batch: samples tried at a time
    """
    alive, white, flags = own["clean"].bool(), own["robust"].bool(), list[str]()
    bits = {"ids": own["ids"], "clean": own["clean"], "robust.white-box": own["robust"]}
    for name, held in sources.items():
        proposed = attack.proposing(held["ids"], held["points"])
        tried = accuracy(model, data, loop, attack=proposed, split=split, samples=samples, rule=rule, sample_seed=sample_seed, batch=batch)
        flags = list(tried.flags)
        bits |= {f"robust.transfer.{name}": tried.samples["robust"], f"margin.transfer.{name}": tried.samples["margin"]}
        alive &= tried.samples["robust"].bool()
    if int((white & ~alive).sum()) > max(1, BEATEN * len(white)):
        flags.append("transfer-beats-white-box")
    bits |= {"robust": (alive & white).byte(), "robust.transfer": alive.byte()}
    shares = {name.partition(".")[2]: float(each.double().mean()) for name, each in bits.items() if name.startswith("robust")}
    return Measure({**shares}, bits, tuple(flags), about={"split": split, "samples": len(white)})
