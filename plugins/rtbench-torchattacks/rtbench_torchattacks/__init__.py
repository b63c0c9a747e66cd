"""The attacks of torchattacks as one rtbench attack. Source: Kim 2020, "Torchattacks", arXiv:2010.01950."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rtbench import Attacked, Threat, UserError, declare, hookimpl, unknown, untouched
from rtbench_torchattacks.table import COLOUR_ONLY, FOUR_CLASSES, LIBRARY_NORMS, NORMS, REFUSED, Name

Option = bool | int | float | str


def _go_together(knobs: dict[str, Any]) -> None:
    if knobs["norm"] not in NORMS[knobs["attack"]]:
        raise ValueError(f'"{knobs["attack"]}" is an attack for {" and ".join(NORMS[knobs["attack"]])}, not for {knobs["norm"]}')


@declare(check=_go_together)
def run(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    noise: Any,
    *,
    attack: Name = "PGD",
    options: dict[str, Option] | None = None,
) -> Attacked:
    """One attack of torchattacks 3.5.1 on x (n, c, h, w) in [0, 1], y int64 (n,).

    The radius, the norm, the seed and the number of classes are passed where the attack takes them; attacks of minimum norm (CW,
    DeepFool, EADL1, EADEN) and GN take no radius, and rtbench moves what they find into the ball. The flag `steps-shorter-than-eps` says
    that the steps together are shorter than the radius, `torchattacks-autoattack-is-10-steps` what the name says.
    Raises UserError for an attack that does not fit the norm, the images or the classes, and for an option that it does not have.

    attack: name in torchattacks, for its four-attack ensemble "AutoAttack-10-steps"
    options: the attack's other arguments under its own names, { alpha = "2/255", steps = 50 }; none for its defaults
    """
    seed = noise.seed
    with untouched(model, seed), contextlib.redirect_stdout(io.StringIO()):
        classes = _classes(model, x)
        _fits(attack, threat, x, classes)
        built = _build(attack, model, threat, seed, classes, options or {})
        built.set_device(x.device)
        x_adv = built(x.clone(), y.clone()).detach()
    return Attacked(x_adv, flags=_flags(attack, built, threat))


def _fits(attack: str, threat: Threat, x: Tensor, classes: int) -> None:
    if attack in REFUSED:
        raise UserError(f'torchattacks: "{attack}" is refused: {REFUSED[attack]}')
    if attack not in NORMS:
        raise unknown("attack of torchattacks", attack, NORMS)
    try:
        _go_together({"attack": attack, "norm": threat.norm})
    except ValueError as error:
        raise UserError(f"torchattacks: {error}") from None
    if attack in COLOUR_ONLY and x.shape[1] != 3:
        raise UserError(f'torchattacks: "{attack}" needs images of 3 channels, not {x.shape[1]}')
    if attack in FOUR_CLASSES and classes < 4:
        raise UserError(f'torchattacks: "{attack}" needs at least 4 classes, not {classes}')


@torch.no_grad()
def _classes(model: nn.Module, x: Tensor) -> int:
    return int(model(x[:1]).shape[1])


def _build(attack: str, model: nn.Module, threat: Threat, seed: int, classes: int, options: dict[str, Option]) -> Any:
    """The library's attack object: what the suite's threat model and seed say, then the options."""
    import torchattacks

    kind = getattr(torchattacks, attack.removesuffix("-10-steps"))
    accepted = list(inspect.signature(kind).parameters)[1:]
    radius = float(threat.eps)
    ours = {"eps": radius, "max_epsilon": radius, "norm": LIBRARY_NORMS[threat.norm], "seed": seed, "n_classes": classes, "verbose": False}
    free = [name for name in accepted if name not in ours]
    for option in options:
        if option in ours:
            raise UserError(f'torchattacks: "{option}" is no option of "{attack}"; rtbench sets it')
        if option not in free:
            raise unknown(f"option of torchattacks {attack}", option, free)
    return kind(model, **{name: value for name, value in ours.items() if name in accepted}, **options)


def _flags(attack: str, built: Any, threat: Threat) -> tuple[str, ...]:
    flags = []
    if attack == "AutoAttack-10-steps":
        flags.append("torchattacks-autoattack-is-10-steps")
    if hasattr(built, "eps") and hasattr(built, "alpha") and getattr(built, "steps", 1) * built.alpha < float(threat.eps) * (1 - 1e-9):
        flags.append("steps-shorter-than-eps")
    return tuple(flags)


@hookimpl
def rtbench_attacks() -> dict[str, Callable[..., Any]]:
    return {"torchattacks": run}
