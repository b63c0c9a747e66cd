"""The contract of pruners: f(model, masks, data, rng, loop) -> masks, on a trained network, dense or pruned before."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

from torch import nn

from rtbench.engine.state import check_masks
from rtbench.errors import UserError
from rtbench.parts.amounts import wanted
from rtbench.parts.kinds import knobs
from rtbench.parts.masks import Masks, ones, target
from rtbench.testing import layers
from rtbench.testing.lab import pruned, trained
from rtbench.testing.result import Broken, Skip, need
from rtbench.testing.sample import Subject
from rtbench.testing.stages import Done, Make, differing, intact, resumes, run

AMOUNTS: dict[str, tuple[Any, ...]] = {"keep": (0.5, 0.013), "drop": (0.2, 0.9), "count": (40, 301)}
"""Few and many of the 3,384 prunable weights, at shares that need rounding."""
Amount = tuple[str, Any, dict[str, Any]]
"""Knob, value, resolved part."""
LONG = 300
"""Characters of a refusal: one sentence."""


def prepare(subject: Subject) -> None:
    """Skip where it says that it cannot prune this network or on these data."""
    try:
        _sparse(subject)
    except UserError as error:
        raise Skip(str(error)) from None


def _makes(build: Callable[[], nn.Module]) -> tuple[Make, Make]:
    """The network of `build` dense, and pruned before."""

    def dense() -> tuple[nn.Module, Masks]:
        model = build()
        return model, ones(model)

    def sparse() -> tuple[nn.Module, Masks]:
        model = build()
        return model, pruned(model)

    return dense, sparse


_make_dense, _make_sparse = _makes(trained)


def _amounts(subject: Subject) -> list[Amount]:
    """Every amount that it can be given; the first ones are moderate."""
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
    _fits(_sparse(subject), trained())


def _fits(done: Done, model: nn.Module) -> None:
    need(isinstance(done.returned, dict), f"it returns {type(done.returned).__name__}, not masks")
    intact(done)
    try:
        check_masks(model, done.masks, "it")
    except UserError as error:
        raise Broken(str(error)) from None


def exact(subject: Subject) -> None:
    """It keeps as many weights as keep, drop and count say, exactly or to the nearest whole filter, pruned before or not."""
    if subject.wanted.keys() - AMOUNTS.keys():
        raise Skip("the knobs given may change what its amounts refer to")
    amounts = _amounts(subject)
    if not amounts:
        raise Skip("it has no knob keep, drop or count")
    _met(subject, amounts, trained)


def _met(subject: Subject, amounts: list[Amount], build: Callable[[], nn.Module]) -> None:
    """Broken unless it meets every amount on this network, dense and pruned before."""
    if getattr(subject.part.function, "structured", False):
        return _nearest(subject, amounts, build)
    for (name, value, resolved), make in itertools.product(amounts, _makes(build)):
        done = run(subject, resolved, make)
        kept = sum(int(mask.count_nonzero()) for mask in done.masks.values())
        promised = target(done.old, **{name: value})
        before = sum(int(mask.count_nonzero()) for mask in done.old.values())
        need(kept == promised or _each(done, name, value), f"{name} = {value} of {before} weights promises {promised}, it keeps {kept}")


def _nearest(subject: Subject, amounts: list[Amount], build: Callable[[], nn.Module]) -> None:
    """Of a structured pruner: rows stay as they were or go, and the number kept is off by half a row at most."""
    met = 0
    for (name, value, resolved), make in itertools.product(amounts, _makes(build)):
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


def grouped(subject: Subject) -> None:
    """Grouped and depthwise convolutions it prunes like any other, or it refuses them in one sentence."""
    _copes(subject, layers.grouped, layers.GROUPED)


def attention(subject: Subject) -> None:
    """Attention projections it prunes like linear layers, or it refuses them in one sentence."""
    _copes(subject, layers.attentive, layers.ATTENTION)


def _copes(subject: Subject, build: Callable[[], nn.Module], unusual: tuple[str, ...]) -> None:
    """Broken if it fails on this network, or leaves one of the `unusual` weights alone without a word; Skip if it refuses the network."""
    amounts, done, refusal = list[Amount](), list[Done](), ""
    given = _amounts(subject)
    for amount in given or [("", None, subject.resolve())]:
        try:
            done.append(run(subject, amount[2], _makes(build)[0]))
        except UserError as error:
            refusal = refusal or str(error)
        else:
            amounts.append(amount)
    if not done:
        need(len(refusal) <= LONG and refusal.strip() and "\n" not in refusal, f"its refusal is not one sentence: {refusal!r}")
        raise Skip(f"it refuses them: {refusal}")
    for each in done:
        _fits(each, build())
    if given and not subject.wanted.keys() - AMOUNTS.keys():
        _met(subject, amounts, build)
        alone = [name for name in unusual if all(bool(each.masks[name].all()) for each in done)]
        need(not alone, f'it prunes nothing of "{alone[0] if alone else ""}" at any amount and does not refuse it')


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


CHECKS = (fitting, exact, grouped, attention, lasting, repeatable, resumable, modest)
