"""Structured pruning: whole filters, by their share of their layer's L1 norm."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rtbench.builtin.pruners.channels import channels_too
from rtbench.builtin.pruners.select import Count, Drop, Floor, Keep, Only, pooled
from rtbench.errors import UserError
from rtbench.parts.kinds import declare
from rtbench.parts.masks import Masks, prunable, target

TINY = torch.finfo(torch.float64).tiny
Order = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""From the L1 norms of a layer's filters, float64 (n,): the order in which they would go, and scores that rise with it."""
Ranked = Callable[[Tensor], tuple[Tensor, Tensor]]
"""An `Order` given its generator."""
HELP = """
keep: share of all prunable weights to keep
drop: share of the weights that are left to prune
count: number of weights to keep
only: all, or conv: linear layers stay as they are and all amounts refer to the convolutions alone
floor: number of filters that every pruned layer keeps at least
"""


def by_filter(order: Order) -> Callable[..., Masks]:
    """The pruner of whole filters, least score first: its name and docstring, and the knobs of `HELP`."""

    def prune(
        model: nn.Module,
        masks: Masks,
        rng: torch.Generator,
        *,
        keep: Keep = None,
        drop: Drop = None,
        count: Count = None,
        only: Only = "all",
        floor: Floor = 1,
    ) -> Masks:
        names = [name for name in prunable(model) if name in masks]
        counted = pooled(model, masks, names, only)
        number = target(counted, keep=keep, drop=drop, count=count)
        rows = [name for name in counted if name != names[-1] and _has_filters(model, name)]
        gone = _gone(model, counted, rows, number, floor, lambda norms: order(norms, rng))
        return {name: _without(mask, gone[name]) if name in gone else mask for name, mask in masks.items()}

    prune.__name__, prune.__module__ = order.__name__, order.__module__
    prune.__doc__ = f"{inspect.cleandoc(order.__doc__ or '')}\n{HELP}"
    return declare(structured=True)(prune)


@channels_too
@by_filter
def filters(norms: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prune whole filters, one at a time, each time the one of least scaled L1 norm: its mean |w| over the sum of that in its layer.

    A filter is an output row of a convolution, grouped ones included, of a linear layer or of an attention projection. The last layer
    and transposed convolutions are never pruned. Amounts count weights, those layers' among them: filters go until the number of weights
    kept is as near to the amount as whole filters in this order allow, the larger number if two are equally near. Biases stay. Among
    equal norms the earlier layer and position stays. Raises UserError on weights that are not finite, and on amounts below what is
    never pruned.

    The sum is over the filters left, so the scores of a layer rise as it is pruned. The order is that of one sort all the same: of
    norms m1 <= m2 <= ... of a layer, the k-th to go has score mk / (mk + m(k+1) + ...), whatever other layers lose meanwhile; and these
    rise with k, so merging the layers, least score first, is sorting all scores.

    Source: Li et al. 2020, arXiv:2003.05733 (boosting tickets, the structured option of their code).
    """
    order = norms.argsort(stable=True)
    rising = norms[order]
    sums = rising.flip(0).cumsum(0).flip(0).clamp_min(TINY)  # a layer of zeros has scores 0, not 0 / 0
    return order, (rising / sums).cummax(0).values  # rounding must not swap neighbours


@channels_too
@by_filter
def random_filters(norms: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prune whole filters drawn at random, each alike: the control for `filters`, which says what a filter is and what amounts count.

    Raises UserError on weights that are not finite, and on amounts below what is never pruned.
    """
    scores, order = torch.rand(len(norms), generator=rng, dtype=torch.float64, device=rng.device).cpu().sort()
    return order, scores


def _has_filters(model: nn.Module, name: str) -> bool:
    """Whether the rows of this weight are what makes one output each."""
    module = model.get_submodule(name.rpartition(".")[0])
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.MultiheadAttention)


def _gone(model: nn.Module, masks: Masks, rows: list[str], number: int, floor: int, order: Ranked) -> dict[str, Tensor]:
    """The rows to prune, by layer."""
    # Later layers come first, and the sort is stable: among equal scores the later layer goes first.
    layers = [_queue(model.get_parameter(name).detach(), masks[name], name, floor, order) for name in reversed(rows)]
    alive = sum(int(mask.count_nonzero()) for mask in masks.values())
    if not layers:
        layers = [(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.long))]
    merged = torch.cat([scores for _, scores, _ in layers]).argsort(stable=True)
    kept = alive - torch.cat([torch.zeros(1, dtype=torch.long), torch.cat([sizes for _, _, sizes in layers])[merged].cumsum(0)])
    if number < int(kept[-1]):
        raise UserError(f"cannot keep only {number} weights: layers never pruned and {floor} filters of each other make {int(kept[-1])}")
    near = int((kept - number).abs().argmin())  # the first of equals: the larger number
    chosen = torch.zeros(len(merged), dtype=torch.bool)
    chosen[merged[:near]] = True
    parts = torch.split(chosen, [len(queue) for queue, _, _ in layers])
    return {name: queue[part] for name, (queue, _, _), part in zip(reversed(rows), layers, parts, strict=False)}


def _queue(weight: Tensor, mask: Tensor, name: str, floor: int, order: Ranked) -> tuple[Tensor, Tensor, Tensor]:
    """The filters of a layer that may go, in the order they would: their rows, scores and numbers of weights, on the CPU."""
    norms = weight.masked_fill(~mask, 0).abs().flatten(1).double().sum(1).cpu()
    sizes = mask.flatten(1).sum(1).cpu()
    if not bool(norms.isfinite().all()):
        raise UserError(f"the weights of {name} are not finite; did training diverge?")
    left = sizes.nonzero().squeeze(1).flip(0)  # later positions first, and the sort is stable
    places, scores = order(norms[left])
    queue = left[places]
    end = max(0, len(queue) - floor)
    return queue[:end], scores[:end], sizes[queue[:end]]


def _without(mask: Tensor, rows: Tensor) -> Tensor:
    return mask.index_fill(0, rows.to(mask.device), False)
