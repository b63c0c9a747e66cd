"""Security curves: robust accuracy at several radii, from one run of a minimal-norm attack or a run per radius of any other."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from rtbench.builtin.probes.accuracy import about_chance
from rtbench.builtin.probes.samples import Batch, Count, Rule, Seed, Where, chosen, count, rechecked
from rtbench.parts.kinds import Measure, Passes, declare
from rtbench.parts.knobs import Attack, Range
from rtbench.parts.threats import radius

SHARES = (Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(2))
NOISE, FEWEST = 0.005, 2
"""A larger radius may leave more samples robust by this share of all, or by fewer samples than this, before it is flagged."""


def radii(attack: Fraction, eps: tuple[Fraction, ...] | None) -> list[Fraction]:
    """All radii, ascending: the ones asked for, and the attack's own."""
    return sorted({attack, *([share * attack for share in SHARES] if eps is None else eps)})


def _radii(knobs: dict[str, Any]) -> list[Fraction]:
    eps = knobs["eps"]
    return radii(Fraction(knobs["attack"]["knobs"]["eps"]), None if eps is None else tuple(map(Fraction, eps)))


def check(knobs: dict[str, Any]) -> None:
    own = knobs["attack"]["knobs"]
    if "eps" not in own:
        raise ValueError(f'attack "{knobs["attack"]["use"]}" has no radius to vary')
    asked = _radii(knobs)
    if len(asked) < 2:
        raise ValueError("a curve needs at least two radii")
    if own["norm"] == "linf" and asked[-1] > 1:
        raise ValueError(f"eps {asked[-1]} exceeds the range [0, 1] of a pixel")


def predicted(knobs: dict[str, Any], sizes: dict[str, int], nested: Callable[..., Passes]) -> Passes:
    """One clean and one final forward a sample and run, and what the attack takes; that again of those attacked after bfloat16."""
    n = count(knobs, sizes)
    forwards, gradients = nested("attack", knobs["attack"], radii=len(_radii(knobs)))
    runs = forwards / nested("attack", knobs["attack"])[0]
    each = n + rechecked(knobs, n)
    return n * runs + each * (forwards + runs), each * gradients


@declare(check=check, passes=predicted)
def curve(
    model: nn.Module, data: Any, loop: Any, *,
    attack: Attack,
    eps: Annotated[tuple[Fraction, ...] | None, Range("(0, inf)")] = None,
    split: Where = "test",
    samples: Count = None,
    rule: Rule = "first",
    sample_seed: Seed = 0,
    batch: Batch = 512,
) -> Measure:  # fmt: skip
    """Robust accuracy at several radii; its own value is that at the attack's radius, the others are named by the radius, "8/255".

    A minimal-norm attack (fmn, fab, deepfool, cw under l2) runs once: a sample is robust at the radii that are smaller than the distance
    of the nearest misclassified point it ever asked the model about; "median" is the radius at which robust accuracy falls to one half.
    Any other attack runs once per radius: what a smaller radius broke is broken at the larger ones too; "raw.8/255" is accuracy under
    the attack of that radius alone. Flags "larger-eps-more-accurate" where raw accuracy rises with the radius by over 0.5 % of the
    samples and at least 2 of them, and "chance-level" as `accuracy` does. Where the attack searches in bfloat16, "missed" is the share
    that float32 breaks of the first 64 samples that each run left robust at its (largest) radius, with the flag "bf16-missed".

    Keeps per sample: id, clean, robust at the attack's radius, and the distance (of attacks that run per radius the smallest radius
    that broke it; 0 where misclassified clean, inf where nothing was found).

    attack: the attack, with its norm and eps
    eps: the radii in input units, exact, at best five or more; 1/4, 1/2, 1, 3/2 and 2 times the attack's own if left out
    split: test, valid or train
    samples: how many; all if not given
    rule: the first ones, random ones, or random with equal shares of the classes
    sample_seed: draws the samples, the same ones for every model, trial and attack
    batch: samples attacked at a time
    """
    part, positions = chosen(data, split, samples, rule, sample_seed)
    asked = radii(attack.threat.eps, eps)

    def attacked(call: Callable[..., Any]) -> Any:
        return call(model, part, positions, loop, batch)

    numbers: dict[str, float | None] = {}
    if attack.minimal:
        outcome, distance = attacked(attack.at(asked[-1]).distances)
        flags = list(outcome.flags)
        median = float(distance.median())
        numbers["median"] = median if median < torch.inf else None
    else:
        outcomes = [attacked(attack.at(one)) for one in asked]
        outcome, distance = outcomes[0], _first_broken(asked, outcomes)
        flags = list(dict.fromkeys(flag for one in outcomes for flag in one.flags))
        flags += ["larger-eps-more-accurate"] if _rises([int(one.robust.sum()) for one in outcomes], len(positions)) else []
        numbers |= {f"raw.{one}": found.accuracy for one, found in zip(asked, outcomes, strict=True)}
    flags += about_chance(outcome)
    numbers |= _missed([outcome] if attack.minimal else outcomes)
    robust = {one: outcome.clean & (distance > radius(one)) for one in asked}
    own = robust[attack.threat.eps]
    values = {"": _share(own), **{str(one): _share(bits) for one, bits in robust.items()}, **numbers}
    kept = {"ids": outcome.ids, "clean": outcome.clean.byte(), "robust": own.byte(), "distance": distance}
    about = {"split": split, "samples": len(positions), "distances": ["median"] if attack.minimal else [],
             "radii": {name: name.removeprefix("raw.") for name in values if name not in ("", "median", "missed")}}  # fmt: skip
    return Measure(values, kept, tuple(flags), about=about)


def _missed(outcomes: list[Any]) -> dict[str, float | None]:
    """Of searches in bfloat16: the share that float32 breaks of all that was attacked again."""
    rechecks = [one.recheck for one in outcomes if one.recheck is not None]
    asked, held = (sum(int(getattr(one, name).sum()) for one in rechecks) for name in ("asked", "held"))
    return {"missed": (asked - held) / asked if asked else None} if rechecks else {}


def _share(bits: Tensor) -> float:
    return float(bits.double().mean())


def _first_broken(asked: list[Fraction], outcomes: list[Any]) -> Tensor:
    """float64 (n,): the smallest radius at which a sample was broken, 0 where it was wrong clean, inf where it never was."""
    found = torch.full((len(outcomes[0].ids),), torch.inf, dtype=torch.float64)
    for one, outcome in zip(reversed(asked), reversed(outcomes), strict=True):
        found[~outcome.robust] = radius(one)
    return found.masked_fill(~outcomes[0].clean, 0)


def _rises(robust: list[int], n: int) -> bool:
    """Whether more of n samples survive a larger radius than a smaller one, beyond noise; counts by ascending radius."""
    return any(larger - smaller >= FEWEST and larger - smaller > NOISE * n for smaller, larger in combinations(robust, 2))
