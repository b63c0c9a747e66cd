"""What is measured while training, and what follows from it: the best state, an early stop, catastrophic overfitting seen."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import nn

from rtbench.errors import UserError
from rtbench.parts.masks import Masks


class Rules(NamedTuple):
    """The knobs of the trainer that say what to do about a measurement, explained there."""

    probes: dict[str, Any]
    select: str
    best: str
    improve: float
    patience: int | None
    guard: str
    fall: float
    on_collapse: str


def measure(model: nn.Module, masks: Masks, rules: Rules, loop: Any, done: int, seen: dict[str, Any]) -> bool:
    """Logs every probe after `done` steps, and says whether training shall stop. seen: what must be remembered; survives a kill."""
    stop = False
    for name, probe in rules.probes.items():
        measured = probe(model, masks)
        for sub, value in measured.numbers.items():
            full = f"{name}.{sub}" if sub else name
            loop.log(done, full, value)
            if full in (rules.select, rules.guard):
                _on_validation(full, measured.about.get("split"))
            if full == rules.guard and value is not None:
                stop |= _collapses(rules, loop, done, value, seen)
            if full == rules.select:
                stop |= _chosen(model, rules, loop, done, value, seen)
    return stop


def _on_validation(name: str, split: Any) -> None:
    if split != "valid":
        raise UserError(f'"{name}" decides about training, so it must be measured on the validation split, not on "{split}"')


def _chosen(model: nn.Module, rules: Rules, loop: Any, done: int, value: float | None, seen: dict[str, Any]) -> bool:
    """Keeps the state if it is better than before (the earlier one wins a tie); True when patience is at its end."""
    finite = value is not None and math.isfinite(value)
    if finite and ("value" not in seen or _better(rules, value, seen["value"])):
        state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        seen.update(value=value, step=done, state=state, waited=0)
        return False
    seen["waited"] = seen.get("waited", 0) + 1
    if rules.patience is None or seen["waited"] < rules.patience:
        return False
    loop.log(done, "stopped", 1.0)
    return True


def _better(rules: Rules, value: Any, before: float) -> bool:
    return bool(value > before + rules.improve if rules.best == "max" else value < before - rules.improve)


def _collapses(rules: Rules, loop: Any, done: int, value: float, seen: dict[str, Any]) -> bool:
    """Records the first fall of the guard; True if training shall stop for it."""
    seen["peak"] = max(seen.get("peak", value), value)
    if "collapsed" in seen or value > seen["peak"] - rules.fall:
        return False
    seen["collapsed"] = True
    loop.log(done, "collapsed", value)
    return rules.on_collapse == "stop"
