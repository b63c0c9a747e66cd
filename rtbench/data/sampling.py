"""Which samples: validation splits, shares of a training set, samples to measure on. Exact counts, seeded, by position."""

from __future__ import annotations

import math
from collections.abc import Sized
from fractions import Fraction
from typing import Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

from rtbench import keys
from rtbench.errors import UserError, unknown


class Labelled(Sized, Protocol):
    """What can be sampled from: a Split or a Stream."""

    @property
    def y(self) -> Tensor: ...

    def subset(self, positions: Tensor) -> Self: ...


S = TypeVar("S", bound=Labelled)


def carve(split: S, n: int, rule: Literal["first", "last", "random"], seed: int = 0) -> tuple[S, S]:
    """(rest, held_out): `n` samples held out, at least one on either side, both in the split's order; UserError otherwise."""
    total = len(split)
    if not 0 < n < total:
        raise UserError(f"cannot hold out {n} of {total} samples; hold out between 1 and {total - 1}")
    if rule == "random":
        order = torch.randperm(total, generator=_generator("carve", seed))
        held, rest = order[:n].sort().values, order[n:].sort().values
    elif rule == "first":
        held, rest = torch.arange(n), torch.arange(n, total)
    elif rule == "last":
        held, rest = torch.arange(total - n, total), torch.arange(total - n)
    else:
        raise unknown("rule", rule, ("first", "last", "random"))
    return split.subset(rest), split.subset(held)


def fraction(split: S, share: float, rule: Literal["random", "first", "stratified"], seed: int = 0) -> S:
    """floor(share * n) samples in the split's order, as `portion` counts; UserError unless at least one is left and share <= 1."""
    total = len(split)
    n = portion(share, total)
    if not 0 < n <= total:
        raise UserError(f"a share of {share} of {total} samples is {n} samples; take between 1 and {total}")
    return split if n == total else split.subset(_positions(split.y, n, rule, _generator("fraction", seed)))


def portion(share: float, total: int) -> int:
    """floor(share * total), exact: a share written 0.29 counts as 29/100 and one written 1/3 as 1/3, although neither is a float."""
    return math.floor(Fraction(share).limit_denominator(10**9) * total)


def choose(split: Labelled, n: int | None, rule: Literal["first", "random", "stratified"], rng: torch.Generator) -> Tensor:
    """`n` different positions, ascending int64 on the CPU; None is all of them. UserError if there are fewer than `n`."""
    total = len(split)
    if n is None:
        return torch.arange(total)
    if not 0 < n <= total:
        raise UserError(f"cannot choose {n} of {total} samples; choose between 1 and {total}")
    return _positions(split.y, n, rule, rng)


def interleave(y: Tensor) -> Tensor:
    """An order that spreads every class evenly, so that any run of it has nearly the class proportions of the whole; no chance in it.

    For a set stored class by class, y int64 (n,). The r-th sample of a class of size m goes to the place (r + 1/2) / m of the way.
    """
    _, inverse, counts = torch.unique(y, return_inverse=True, return_counts=True)
    by_class, rank = _ranks(inverse, counts)
    place = (2 * rank + 1).double() / (2 * counts[inverse[by_class]])
    return by_class[place.argsort(stable=True)]


def _positions(y: Tensor, n: int, rule: str, rng: torch.Generator) -> Tensor:
    if rule == "first":
        return torch.arange(n)
    if rule == "random":
        return torch.randperm(len(y), generator=rng)[:n].sort().values
    if rule == "stratified":
        return _stratified(y.cpu(), n, rng)
    raise unknown("rule", rule, ("first", "random", "stratified"))


def _stratified(y: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Each class gets its exact share rounded down, and the largest remainders one more, until there are `n`."""
    _, inverse, counts = torch.unique(y, return_inverse=True, return_counts=True)
    quota = counts * n // len(y)
    remainder = counts * n % len(y)
    quota[remainder.argsort(descending=True, stable=True)[: n - int(quota.sum())]] += 1
    order = torch.randperm(len(y), generator=rng)
    by_class, rank = _ranks(inverse[order], counts)
    chosen = order[by_class[rank < quota[inverse[order[by_class]]]]]
    return chosen.sort().values


def _ranks(inverse: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Positions sorted by class, stable, and how many of the same class precede each of them."""
    by_class = inverse.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    return by_class, torch.arange(len(inverse)) - starts[inverse[by_class]]


def _generator(*parts: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(keys.seed(*parts))
