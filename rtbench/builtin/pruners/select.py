"""From scores to masks: the knobs that all pruners by score share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from rtbench.errors import UserError
from rtbench.parts.amounts import matching
from rtbench.parts.kinds import declare
from rtbench.parts.knobs import OneOf, Range
from rtbench.parts.masks import Masks, conv_only, keep_top, keep_top_each, prunable

Scope = Literal["global", "layer"]
Only = Literal["all", "conv"]
Keep = Annotated[float | None, Range("(0, 1]"), OneOf("amount")]
Drop = Annotated[float | None, Range("[0, 1)"), OneOf("amount")]
Count = Annotated[int | None, Range("[0, inf)"), OneOf("amount")]
Rates = dict[str, Annotated[float, Range("[0, 1)")]] | None
Last = Annotated[float | None, Range("[0, 1)")]
Floor = Annotated[int, Range("[0, inf)")]
Extra = Annotated[int, Range("[0, inf)")]


Score = Callable[[nn.Module, Masks, torch.Generator], dict[str, Tensor]]
"""(model, masks, rng) -> a score of each weight, by layer in the masks' order; the highest are kept."""


@dataclass(frozen=True)
class Cut:
    """The knobs of a pruner by score, explained in `HELP`."""

    scope: Scope
    keep: float | None
    drop: float | None
    count: int | None
    rates: Mapping[str, float] | None
    last: float | None
    only: Only
    exclude: tuple[str, ...]
    floor: int
    extra: int


HELP = """
scope: compare weights in the whole network (global), or in each layer, every layer then losing the same share (layer)
keep: share of all prunable weights to keep
drop: share of the weights that are left to prune
count: number of weights to keep; with scope layer, in each layer
rates: with scope layer, drop rates of single layers by name or shell pattern, in place of drop
last: with scope layer, drop rate of the last layer, in place of drop
only: all, or conv: linear layers stay as they are and all amounts refer to the convolutions alone
exclude: layers that stay as they are but count towards keep, drop and count: names, shell patterns, "first", "last"
floor: number of weights that every pruned layer keeps at least
extra: weights pruned beyond the amount, with scope layer in each layer; 1 is the slip of code that cuts at "<= the k-th smallest"
"""


def by_score(score: Score) -> Callable[..., Masks]:
    """The pruner that keeps the weights `score` ranks highest: its name and docstring, and the knobs of `HELP`."""

    def prune(
        model: nn.Module,
        masks: Masks,
        rng: torch.Generator,
        *,
        scope: Scope = "global",
        keep: Keep = None,
        drop: Drop = None,
        count: Count = None,
        rates: Rates = None,
        last: Last = None,
        only: Only = "all",
        exclude: tuple[str, ...] = (),
        floor: Floor = 0,
        extra: Extra = 0,
    ) -> Masks:
        return select(model, masks, rng, score, Cut(scope, keep, drop, count, rates, last, only, exclude, floor, extra))

    prune.__name__, prune.__module__ = score.__name__, score.__module__
    prune.__doc__ = f"{score.__doc__}\n{HELP}"
    return declare(check=_consistent, passes=lambda knobs, sizes, nested: (0, 0))(prune)


def _consistent(knobs: dict[str, Any]) -> None:
    """Raises ValueError for knobs that contradict each other whatever the network."""
    if knobs["rates"] or knobs["last"] is not None:
        if knobs["scope"] == "global":
            raise ValueError('rates and last are drop rates of single layers: they need scope = "layer"')
        if knobs["drop"] is None:
            raise ValueError("rates and last are drop rates: give drop for the other layers, not keep or count")


def select(model: nn.Module, masks: Masks, rng: torch.Generator, score: Score, cut: Cut) -> Masks:
    """The masks that keep the highest-scored weights as the knobs say; ties go to the earlier layer and position in the model.

    Raises UserError on knobs that contradict each other, match no layer, or ask for more weights than there are.
    """
    names = [name for name in prunable(model) if name in masks]
    pool = pooled(model, masks, names, cut.only)
    excluded = _excluded(names, pool, cut)
    rates = _rates(names[-1], pool, excluded, cut)
    scores = score(model, pool, rng)
    how: dict[str, Any] = {
        "keep": cut.keep,
        "drop": cut.drop,
        "count": cut.count,
        "exclude": excluded,
        "floor": cut.floor,
        "extra": cut.extra,
    }
    chosen = keep_top(scores, pool, **how) if cut.scope == "global" else keep_top_each(scores, pool, rates=rates, **how)
    return {name: chosen.get(name, mask) for name, mask in masks.items()}


def pooled(model: nn.Module, masks: Masks, names: list[str], only: Only) -> Masks:
    """The masks that amounts refer to, in model order; UserError if there are none."""
    if not names:
        raise UserError("the network has no prunable weights")
    conv = set(conv_only(model))
    pool = {name: masks[name] for name in names if only == "all" or name in conv}
    if not pool:
        raise UserError('only = "conv": the network has no convolutions')
    return pool


def _excluded(names: list[str], pool: Masks, cut: Cut) -> list[str]:
    """The layers of the pool that stay as they are."""
    words = {"first": names[0], "last": names[-1]}
    found = matching(names, [words.get(pattern, pattern) for pattern in cut.exclude], "exclude")
    return [name for name in found if name in pool]


def _rates(last: str, pool: Masks, excluded: list[str], cut: Cut) -> dict[str, float]:
    """The drop rates of single layers, the last layer's among them."""
    rates = dict(cut.rates or {})
    if cut.last is not None:
        if last not in pool or last in excluded:
            raise UserError(f"last = {cut.last}: the last layer, {last}, is not pruned at all here")
        if last in rates:
            raise UserError(f"last and rates.{last} are two rates of one layer")
        rates[last] = cut.last
    if rates and cut.scope == "global":
        raise UserError('rates and last are drop rates of single layers: they need scope "layer"')
    if rates and cut.drop is None:
        raise UserError("rates and last are drop rates: give drop for the other layers, not keep or count")
    return rates
