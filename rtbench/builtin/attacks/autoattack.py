"""AutoAttack and its parts as native attacks. Source: Croce & Hein 2020, arXiv:2003.01690."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from rtbench.builtin.attacks import apgd as _apgd
from rtbench.builtin.attacks import fab as _fab
from rtbench.builtin.attacks import square as _square
from rtbench.errors import UserError
from rtbench.parts.kinds import declare
from rtbench.parts.knobs import Range
from rtbench.parts.slots import Method, Native
from rtbench.parts.threats import Threat

Count = Annotated[int, Range("[1, inf)")]
Precision = Literal["exact", "bf16"]
PASSES = {"standard": (7811, 1910), "plus": (9731, 7319), "rand": (4040, 4040)}
"""Forwards, and of these with a gradient, of a sample with 10 classes that stays robust."""
SHRUNK = 10_000
"""Queries by which Square's patches would have shrunk to the end: AutoAttack stops at half of them, it does not shrink them faster."""
FEWEST = {"apgd-dlr": 3, "apgd-t": 4}
"""Classes that a loss needs: DLR divides by the first minus the third logit, its targeted form uses the fourth as well."""


@declare(version=3, norms=("linf", "l2"), passes=lambda knobs, sizes, nested: PASSES[knobs["version"]])
def autoattack(
    threat: Threat, classes: int, shape: tuple[int, ...], *,
    version: Literal["standard", "plus", "rand"] = "standard",
    precision: Precision = "exact",
) -> Native:  # fmt: skip
    """AutoAttack under linf or l2, each attack on what the ones before it left robust.

    standard: APGD-CE, APGD-T and FAB-T on 9 targets, Square with 5000 queries. plus: APGD-CE, APGD-DLR and FAB with 5 restarts, Square,
    APGD-T, FAB-T. rand: APGD-CE and APGD-DLR, each step averaged over 20 passes. With k < 10 classes the targeted attacks take all k - 1
    targets, and an attack whose loss needs more than k classes (APGD-T below 4, APGD-DLR below 3) is left out under the flag
    `few-classes`. Raises UserError for l1, for fewer than 2 classes, and for images below 5 pixels where l2 needs Square.

    version: "standard" for the leaderboard's; "plus" for more attacks and restarts; "rand" for randomised networks
    precision: "exact" for float32 throughout; "bf16" to search in bfloat16, every claim being judged in float32
    """
    if classes < 2:
        raise UserError(f"autoattack: a network with {classes} class cannot be attacked")
    if threat.norm not in ("linf", "l2"):
        raise UserError(f'autoattack takes linf and l2, not "{threat.norm}"')
    methods = [method for method in _methods(version, threat.norm, classes, shape) if classes >= FEWEST.get(method.name, 2)]
    return Native(tuple(methods), () if len(methods) == {"standard": 4, "plus": 6, "rand": 2}[version] else ("few-classes",), precision)


def _methods(version: str, norm: str, classes: int, shape: tuple[int, ...]) -> list[Method]:
    targets = min(9, classes - 1)
    if version == "rand":
        return [_apgd.apgd("apgd-ce", "ce", average=20), _apgd.apgd("apgd-dlr", "dlr", average=20)]
    targeted = _apgd.apgd("apgd-t", "dlr-targeted", targets=targets)
    boundary, patches = _fab.fab("fab-t", norm, targets), _square.square("square", norm, min(shape[1:]), over=SHRUNK)
    if version == "standard":
        return [_apgd.apgd("apgd-ce", "ce"), targeted, boundary, patches]
    first = [_apgd.apgd("apgd-ce", "ce", restarts=5), _apgd.apgd("apgd-dlr", "dlr", restarts=5)]
    return [*first, _fab.fab("fab", norm, restarts=5, classes=classes), patches, targeted, boundary]


def _apgd_passes(knobs: dict[str, Any], sizes: dict[str, int], nested: Any) -> tuple[float, float]:
    return ((knobs["steps"] + 1) * knobs["restarts"] * (knobs["targets"] if knobs["loss"] == "dlr-targeted" else 1),) * 2


@declare(norms=("linf", "l2"), passes=_apgd_passes)
def apgd(
    threat: Threat, classes: int, *,
    loss: _apgd.LossName = "ce",
    steps: Count = 100,
    restarts: Count = 1,
    targets: Count = 9,
    precision: Precision = "exact",
) -> Native:  # fmt: skip
    """Auto-PGD under linf or l2: momentum, and steps that halve themselves. Raises UserError where the loss needs more classes.

    loss: "ce", "dlr" (3 classes at least), or "dlr-targeted" (4 at least), which attacks the likeliest wrong classes in turn
    steps: gradient steps per restart and target
    restarts: random starts
    targets: classes "dlr-targeted" attacks, no more than there are
    precision: "exact" for float32 throughout; "bf16" to search in bfloat16, every claim being judged in float32
    """
    if classes < {"ce": 2, "dlr": 3, "dlr-targeted": 4}[loss]:
        raise UserError(f'apgd: loss "{loss}" needs more than {classes} classes; use "ce"')
    if threat.norm not in ("linf", "l2"):
        raise UserError(f'apgd takes linf and l2, not "{threat.norm}"')
    reached = min(targets, classes - 1) if loss == "dlr-targeted" else 0
    return Native((_apgd.apgd(f"apgd-{loss}", loss, steps, restarts, reached),), precision=precision)


def _fab_passes(knobs: dict[str, Any], sizes: dict[str, int], nested: Any) -> tuple[float, float]:
    steps = knobs["steps"] * knobs["targets"] * knobs["restarts"]
    return 2 * steps, steps


@declare(norms=("linf", "l2"), passes=_fab_passes, minimal=("linf", "l2"))
def fab(
    threat: Threat, classes: int, *, steps: Count = 100, restarts: Count = 1, targets: Count = 9, precision: Precision = "exact"
) -> Native:
    """Targeted FAB under linf or l2: the smallest change it finds across the boundary, against the ball.

    steps: steps per target and restart
    restarts: starts per target, the first from the image itself
    targets: likeliest wrong classes, no more than there are
    precision: "exact" for float32 throughout; "bf16" to search in bfloat16, every claim being judged in float32
    """
    return Native((_fab.fab("fab-t", threat.norm, min(targets, classes - 1), steps, restarts),), precision=precision)


@declare(version=3, norms=("linf", "l2"), passes=lambda knobs, sizes, nested: ((knobs["queries"] + 1) * knobs["restarts"], 0))
def square(
    threat: Threat, shape: tuple[int, ...], *,
    queries: Count = 5000,
    restarts: Count = 1,
    share: Annotated[float, Range("(0, 1]")] = 0.8,
    precision: Precision = "exact",
) -> Native:  # fmt: skip
    """Square under linf or l2: random search, no gradients.

    queries: forwards per restart
    restarts: tries, each from other stripes
    share: of the image's pixels that the first patches cover
    precision: "exact" for float32 throughout; "bf16" to search in bfloat16, every claim being judged in float32
    """
    return Native((_square.square("square", threat.norm, min(shape[1:]), queries, restarts, share),), precision=precision)
