"""The contract of pruners: f(model, masks, data, rng, loop) -> masks, on a trained network, dense or pruned before."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from torch import nn

from rtbench.engine.state import check_masks
from rtbench.errors import UserError
from rtbench.parts.amounts import wanted
from rtbench.parts.kinds import knobs
from rtbench.parts.masks import Masks, ones, target
from rtbench.testing.lab import pruned, trained
from rtbench.testing.result import Broken, Skip, need
from rtbench.testing.sample import Subject
from rtbench.testing.stages import Done, differing, intact, resumes, run

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


def _amounts(subject: Subject) -> list[tuple[str, Any, dict[str, Any]]]:
    """(knob, value, resolved part) for every amount that it can be given; the first ones are moderate."""
    declared = knobs("pruner", subject.part.function)
    own = {name: (value,) for name, value in subject.wanted.items() if name in AMOUNTS}
    found = []
    for place in range(2):
        for name, values in (own or AMOUNTS).items():
            if name in declared and place < len(values):
                others = {other: None for other in AMOUNTS if other != name}
                with contextlib.suppress(UserError):
                    found.append((name, values[place], subject.resolve(**others, **{name: values[place]})))
    return found


def _moderate(subject: Subject) -> dict[str, Any]:
    """The resolved part, with an amount that a network with 60 % of its weights can meet."""
    found = _amounts(subject)
    return found[0][2] if found else subject.resolve()


def _sparse(subject: Subject) -> Done:
    return subject.once("sparse", lambda: run(subject, _moderate(subject), _make_sparse))


def fitting(subject: Subject) -> None:
    """It returns one bool mask of the right shape for every prunable weight and leaves the network whole."""
    done = _sparse(subject)
    need(isinstance(done.returned, dict), f"it returns {type(done.returned).__name__}, not masks")
    intact(done)
    try:
        check_masks(trained(), done.masks, "it")
    except UserError as error:
        raise Broken(str(error)) from None


def exact(subject: Subject) -> None:
    """It keeps as many weights as keep, drop and count say, exactly or to the nearest whole filter, pruned before or not."""
    if subject.wanted.keys() - AMOUNTS.keys():
        raise Skip("the knobs given may change what its amounts refer to")
    amounts = _amounts(subject)
    if not amounts:
        raise Skip("it has no knob keep, drop or count")
    if getattr(subject.part.function, "structured", False):
        return _nearest(subject, amounts)
    for name, value, resolved in amounts:
        for make in (_make_dense, _make_sparse):
            done = run(subject, resolved, make)
            kept = sum(int(mask.count_nonzero()) for mask in done.masks.values())
            promised = target(done.old, **{name: value})
            before = sum(int(mask.count_nonzero()) for mask in done.old.values())
            need(kept == promised or _each(done, name, value), f"{name} = {value} of {before} weights promises {promised}, it keeps {kept}")


def _nearest(subject: Subject, amounts: list[tuple[str, Any, dict[str, Any]]]) -> None:
    """Of a structured pruner: rows stay as they were or go, and the number kept is off by half a row at most."""
    met = 0
    for (name, value, resolved), make in itertools.product(amounts, (_make_dense, _make_sparse)):
        try:
            done = run(subject, resolved, make)
        except UserError:  # less than what it never prunes
            continue
        rows = [(mask.flatten(1).sum(1), done.masks[layer].flatten(1).sum(1)) for layer, mask in done.old.items()]
        need(all(bool(((new == old) | (new == 0)).all()) for old, new in rows), "it prunes parts of rows")
        kept, promised = sum(int(new.sum()) for _, new in rows), target(done.old, **{name: value})
        largest = max(int(old.max()) for old, _ in rows)
        need(2 * abs(kept - promised) <= largest, f"{name} = {value} promises {promised}, it keeps {kept} in rows of {largest} at most")
        met += 1
    need(met, f"it meets none of {', '.join(f'{name} = {value}' for name, value, _ in amounts)}")


def _each(done: Done, name: str, value: Any) -> bool:
    """Whether every single layer keeps what the amount says of it."""
    return all(
        int(mask.count_nonzero()) == wanted(mask.numel(), int(done.old[layer].count_nonzero()), **{name: value})
        for layer, mask in done.masks.items()
        if layer in done.old
    )


def lasting(subject: Subject) -> None:
    """It revives no pruned weight, unless it declares that it does."""
    if getattr(subject.part.function, "revives", False):
        raise Skip("it declares that it revives")
    done = _sparse(subject)
    for name, mask in done.old.items():
        revived = int((done.masks[name] & ~mask).count_nonzero())
        need(not revived, f'it revives {revived} weights of "{name}" without declaring so')


def repeatable(subject: Subject) -> None:
    """Run again it is the same, bit for bit: masks, weights, buffers, records."""
    difference = differing(_sparse(subject), run(subject, _moderate(subject), _make_sparse))
    need(not difference, difference)


def resumable(subject: Subject) -> None:
    """Killed at the first, the middle and the last item of its loop and resumed, it ends the same, bit for bit."""
    resumes(subject, _moderate(subject), _make_sparse, _sparse(subject))


def modest(subject: Subject) -> None:
    """It does without a test split and leaves the data as they are."""
    need(not _sparse(subject).touched, "it alters the data")


CHECKS = (fitting, exact, lasting, repeatable, resumable, modest)
