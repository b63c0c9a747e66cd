"""AutoAttack as its authors run it: pyautoattack 0.2.0, its protocol untouched, as the reference attack `autoattack-official`.

Source: Croce & Hein 2020, arXiv:2003.01690; for l1 Croce & Hein 2021, arXiv:2103.01208.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import torch
from pyautoattack import AutoAttack, checks
from torch import Tensor, nn

from rtbench import Attacked, Range, Threat, UserError, declare, hookimpl, untouched
from rtbench_autoattack.listen import Warnings, muted, recorded

Version = Literal["standard", "plus", "rand"]
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
PASSES = {"standard": (7864, 1910), "plus": (9787, 7819), "rand": (4047, 4040)}
"""Forwards, and of these with a gradient, of a sample with 10 classes that stays robust, as counted."""
FEWEST = {"apgd-dlr": 3, "apgd-t": 4}
"""Classes that a loss needs: DLR divides by the first minus the third logit, its targeted form uses the fourth as well."""


@declare(passes=lambda knobs, sizes, nested: PASSES[knobs["version"]])
def official(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Any,
    *,
    version: Version = "standard",
    batch: Annotated[int, Range("[1, inf)")] = 1000,
) -> Attacked:
    """AutoAttack by pyautoattack on x (n, c, h, w) in [0, 1], y int64 (n,): each attack on what the ones before it left robust.

    standard: APGD-CE, APGD-T and FAB-T on 9 targets (APGD-T on 5 for l1), Square with 5000 queries. plus: APGD-CE, APGD-DLR and FAB
    with 5 restarts, Square, APGD-T, FAB-T. rand: APGD-CE and APGD-DLR, each step averaged over 20 passes.
    Outcomes: per attack, in order, what survived it and all before it. Flags are the library's warnings: `randomised`,
    `probabilities`, `dynamic-forward`, `zero-gradient`, `masked-gradient` (Square broke more than 0.2 % after the others). With k < 10
    classes the library would fail; here the targeted attacks take all k - 1 targets, and an attack whose loss needs more than k classes
    (APGD-T below 4, APGD-DLR below 3) is left out under the flag `few-classes`. Deterministic in the noise's seed; x_adv depends on how
    the points are batched.
    Raises UserError for fewer than 2 classes, and for images below 5 pixels where l2 or l1 needs Square.

    version: "standard" for the leaderboard's; "plus" for more attacks and restarts; "rand" for randomised networks
    batch: how many points are attacked at once; the more the faster
    """
    seed = noise.seed
    with untouched(model, seed), _counting():
        warnings = Warnings()
        attack = _attack(model, x, threat, seed, version, warnings)
        with recorded() as survivors:
            x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=batch)
    nobody = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # attacks that had nothing left to do
    return Attacked(x_adv, {name: survivors.get(name, nobody) for name in attack.attacks_to_run}, tuple(warnings.flags))


@contextlib.contextmanager
def _counting() -> Iterator[None]:
    """The library counts calls of gradient functions inside a forward pass in a module global that it never resets: from 0 here."""
    counts = dict(checks.funcs)
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        yield
    finally:
        checks.funcs.update(counts)


def _attack(model: nn.Module, x: Tensor, threat: Threat, seed: int, version: Version, warnings: Warnings) -> AutoAttack:
    """The library's object, with the attacks and targets that exist for the model's number of classes."""
    classes = _classes(model, x)
    with muted(logging.getLogger("auto-attack")):
        attack = AutoAttack(model, norm=NORMS[threat.norm], eps=float(threat.eps), seed=seed, version=version, device=x.device)
    defined = [name for name in attack.attacks_to_run if classes >= FEWEST.get(name, 2)]
    if classes < 2:
        raise UserError(f"autoattack-official: a network with {classes} class cannot be attacked")
    if "square" in defined and threat.norm != "linf" and x.shape[2] < 5:
        raise UserError(f"autoattack-official: Square under {threat.norm} needs images of at least 5 pixels, not {x.shape[2]}")
    if defined != attack.attacks_to_run:
        warnings.add("few-classes")
    attack.attacks_to_run = defined
    for targeted in (attack.apgd_targeted, attack.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
    attack.logger = attack.apgd.logger = attack.apgd_targeted.logger = warnings
    return attack


@torch.no_grad()
def _classes(model: nn.Module, x: Tensor) -> int:
    return int(model(x[:1]).shape[1])


@hookimpl
def rtbench_attacks() -> dict[str, Callable[..., Any]]:
    return {"autoattack-official": official}
