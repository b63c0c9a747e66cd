"""The contract of pruners: f(model, masks, data, rng, loop) -> masks, on a trained network, dense or pruned before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from rtbench.amounts import wanted
from rtbench.errors import UserError
from rtbench.kinds import knobs
from rtbench.masks import Masks, ones, target
from rtbench.state import check_masks
from rtbench.testing.lab import pruned, trained
from rtbench.testing.result import Broken, Skip, need
from rtbench.testing.sample import Subject
from rtbench.testing.stages import Done, Make, differing, intact, resumes, run

AMOUNTS: dict[str, tuple[Any, ...]] = {"keep": (0.5, 0.013), "drop": (0.2, 0.9), "count": (40, 301)}
"""Few and many of the 3,384 prunable weights, at shares that need rounding."""


def prepare(subject: Subject) -> None:
    """Skip where it says that it cannot prune this network or on these data."""
    try:
        _sparse(subject)
    except UserError as error:
        raise Skip(str(error)) from None


def _make_dense() -> tuple[nn.Module, Masks]:
    model = trained()
    return model, ones(model)


def _make_sparse() -> tuple[nn.Module, Masks]:
    model = trained()
    return model, pruned(model)


def _sparse(subject: Subject) -> Done:
    """On a network that was pruned before; of what is left, no more than its smallest amount is asked for."""
    return subject.once("sparse", lambda: run(subject, _amount(subject), _make_sparse))


def _amount(subject: Subject) -> dict[str, Any]:
    """Its sample knobs, with an amount that a network with 60 % of its weights can meet."""
    for amount, name, value in _amounts(subject):
        if amount == name and value == AMOUNTS[name][0]:
            return subject.resolve(**_only(subject, name, value))
    return subject.resolve()


def _amounts(subject: Subject) -> Iterator[tuple[str, str, Any]]:
    declared = knobs("pruner", subject.part.function)
    if set(AMOUNTS) & set(subject.wanted):
        return
    for name, values in AMOUNTS.items():
        if name in declared:
            yield from ((name, name, value) for value in values)


def _only(subject: Subject, name: str, value: Any) -> dict[str, Any]:
    """This amount, and none of the others."""
    return {other: None for other in AMOUNTS} | {name: value}
