"""The contract of a trainer that can train several networks as one: each is what it would be alone, but for rounding."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rtbench.engine.loop import Loop
from rtbench.evaluation.guard import own_randomness
from rtbench.parts.kinds import Unstackable, asks_for, stacked
from rtbench.parts.masks import Masks, ones
from rtbench.parts.meter import metered
from rtbench.parts.noise import Generators
from rtbench.testing.lab import alike, data, everything, network, pruned
from rtbench.testing.result import Skip, need
from rtbench.testing.sample import Subject

NETWORKS = 3
NEAR = 0.1
"""How far the change of a weight may be from that of a network alone, as a share of all changes: rounding grows on the way."""


class Member(NamedTuple):
    """One of several networks in training, and what it is trained with."""

    begun: dict[str, Tensor]
    model: nn.Module
    masks: Masks
    rng: torch.Generator
    loop: Loop


def member(number: int) -> Member:
    """The first is dense, the others are pruned; each has weights and a seed of its own."""
    model, rng = network(number), torch.Generator().manual_seed(number)
    masks = pruned(model, 0.9 - 0.2 * number) if number else ones(model)
    return Member(everything(model), model, masks, rng, Loop(model, masks, rng, counts={"forwards": 0, "gradients": 0}))


def trained(subject: Subject, resolved: dict[str, Any], members: list[Member], together: bool) -> None:
    """Trains them, each alone or all as one."""
    found, function = data(test=False), subject.part.function
    binders = [subject.binder(number, rng=m.rng, data=found, counts=m.loop.counts) for number, m in enumerate(members)]
    given = [{"model": m.model, "masks": m.masks, "data": found, "rng": m.rng, "loop": m.loop} for m in members]
    with contextlib.ExitStack() as meters:
        for m in members:
            meters.enter_context(metered(m.model, m.loop.counts))
        if not together:
            for number, (binder, words) in enumerate(zip(binders, given, strict=True)):
                with own_randomness(number):
                    binder.part("trainer", resolved)(**words)
            return
        train = stacked(function)
        assert train is not None
        asked = [{word: words[word] for word in asks_for(function)} for words in given]
        calls = [{**words, **binder.values("trainer", resolved)} for words, binder in zip(asked, binders, strict=True)]

        def all_of(numbers: list[int]) -> dict[str, Any]:
            rngs = Generators(members[number].rng for number in numbers)
            return subject.binder(0, rng=rngs, data=found).values("trainer", resolved)

        train(calls, all_of)


def stackable(subject: Subject) -> None:
    """Trained with others as one, a network is what it is alone but for rounding, pruned weights exactly 0; or it refuses untouched."""
    if stacked(subject.part.function) is None:
        raise Skip("it trains each network alone")
    alone, as_one = ([member(number) for number in range(NETWORKS)] for _ in range(2))
    before = [copy.deepcopy(_all(m)) for m in as_one]
    try:
        trained(subject, subject.resolve(), as_one, together=True)
    except Unstackable as error:
        need(alike(before, [_all(m) for m in as_one]), "it refuses to train these as one, and has changed something")
        raise Skip(f"these cannot be trained as one: {error}") from None
    trained(subject, subject.resolve(), alone, together=False)
    for number, (a, b) in enumerate(zip(alone, as_one, strict=True)):
        who = f"network {number} of {NETWORKS} trained as one"
        need(alike(a.rng.get_state(), b.rng.get_state()), f"{who}: its generator has drawn otherwise than alone")
        need([r[:2] for r in a.loop.records] == [r[:2] for r in b.loop.records], f"{who}: it logs other names or steps than alone")
        need(a.loop.counts == b.loop.counts, f"{who}: it has passed {b.loop.counts}, alone {a.loop.counts}")
        need(a.loop.kept.keys() == b.loop.kept.keys(), f"{who}: it keeps other states than alone")
        for name, mask in b.masks.items():
            need(not bool(b.model.get_parameter(name)[~mask].any()), f'{who}: pruned weights of "{name}" are not 0')
        far, way = _distance(everything(a.model), everything(b.model)), _distance(a.begun, everything(a.model))
        need(far <= NEAR * way, f"{who}: it ends {far:.2g} away from where it ends alone, of a way of {way:.2g}")


def _all(m: Member) -> list[Any]:
    return [everything(m.model), m.rng.get_state(), m.masks, m.loop.records, m.loop.kept, m.loop.counts]


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(torch.stack([(a[name].double() - b[name].double()).norm() for name in a]).norm())
