"""Masks: which weights of a network are kept, chosen with exact counts.

`Masks` maps parameter names to bool tensors of the parameters' shapes; True keeps. Prunable are the weights of convolutions and
linear layers, attention projections among them; biases and normalisation never are. Amounts have one vocabulary: `keep` is a share
of all prunable weights, `drop` a share of those that are left, `count` an absolute number kept; what is kept is rounded half up.
Weights and biases of BatchNorm may be masked besides, to switch dead channels off; no amount, density or sparsity counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from rtbench.errors import UserError, unknown
from rtbench.parts.amounts import Share, matching, per_layer, wanted

Masks = dict[str, Tensor]

CONV: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd,)
NORM: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._BatchNorm,)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def prunable(model: nn.Module) -> list[str]:
    """Names of the weights of Conv and Linear layers and of attention projections, in model order, a shared one once."""
    return _weights(model, (*CONV, nn.Linear), ATTENTION)


def computed(model: nn.Module) -> list[str]:
    """Names of Conv and Linear layers whose weight is computed of other tensors, as under weight_norm: no mask can hold it at 0."""
    kinds: tuple[type[nn.Module], ...] = (*CONV, nn.Linear)
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds) and "weight" not in layer._parameters]


def conv_only(model: nn.Module) -> list[str]:
    """Names of the weights of convolutions, transposed ones included, in model order."""
    return _weights(model, CONV, ())


def normalisation(model: nn.Module) -> list[str]:
    """Names of the weights and biases of BatchNorm layers, in model order: masks may have them besides all prunable weights."""
    layers = [(prefix, module) for prefix, module in model.named_modules() if isinstance(module, NORM)]
    return [f"{prefix}.{name}".lstrip(".") for prefix, module in layers for name, _ in module.named_parameters()]


def of_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """The masks of prunable weights, in model order, without those of BatchNorm."""
    return {name: masks[name] for name in prunable(model) if name in masks}


def _weights(model: nn.Module, kinds: tuple[type[nn.Module], ...], attention: tuple[str, ...]) -> list[str]:
    found: dict[int, str] = {}
    for prefix, module in model.named_modules():
        fields = ("weight",) if isinstance(module, kinds) else attention if isinstance(module, nn.MultiheadAttention) else ()
        for field in fields:
            weight = module._parameters.get(field)  # not getattr: under a parametrization that would be a computed tensor
            if weight is not None:
                found.setdefault(id(weight), f"{prefix}.{field}".lstrip("."))
    return list(found.values())


def ones(model: nn.Module) -> Masks:
    """Masks that keep every prunable weight."""
    return {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in prunable(model)}


@torch.no_grad()
def apply_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Sets pruned weights to exactly 0, in place. Raises UserError if a mask fits no parameter of the model."""
    for name, mask in masks.items():
        try:
            weight = model.get_parameter(name).detach()
        except AttributeError:
            raise unknown("parameter", name, (name for name, _ in model.named_parameters()), "masks") from None
        if weight.shape != mask.shape:
            raise UserError(f"the mask of {name} has shape {tuple(mask.shape)}, the weight {tuple(weight.shape)}")
        # The bits, as an integer, times 0 or 1: exact for every weight, where inf * 0 and nan * 0 would stay nan.
        weight.view(INTEGERS[weight.element_size()]).mul_(mask.to(weight.device))


def counts(masks: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """(kept, size) per layer."""
    return {name: (int(mask.count_nonzero()), mask.numel()) for name, mask in masks.items()}


def density(masks: Mapping[str, Tensor], names: Iterable[str] | None = None) -> float:
    """The share of weights kept, over all layers or the named ones; 1.0 where there is nothing to prune."""
    found = counts(masks if names is None else {name: masks[name] for name in names})
    size = sum(total for _, total in found.values())
    return sum(kept for kept, _ in found.values()) / size if size else 1.0


def target(
    masks: Mapping[str, Tensor], *, keep: Share = None, drop: Share = None, count: int | None = None, exclude: Iterable[str] = ()
) -> int:
    """How many weights are to be kept in total, from exactly one of keep, drop and count.

    keep: share of all weights. drop: share of those left. count: number. exclude: layers, by name or shell pattern, that stay as
    they are and count towards the amount. Raises UserError if that is more than are left, or fewer than the excluded layers hold.
    """
    found = counts(masks)
    size, alive = sum(size for _, size in found.values()), sum(kept for kept, _ in found.values())
    number = wanted(size, alive, keep=keep, drop=drop, count=count)
    held = sum(found[name][0] for name in matching(masks, exclude, "exclude"))
    if number < held:
        raise UserError(f"cannot keep only {number} of {size} weights: the excluded layers alone hold {held}")
    return number


def highest(scores: Tensor, k: int) -> Tensor:
    """bool (m,): exactly the k highest of scores (m,), the first ones among equals; 0 <= k <= m."""
    m = len(scores)
    if k == 0 or k == m:
        return torch.full((m,), k == m, dtype=torch.bool, device=scores.device)
    line = scores.kthvalue(m - k + 1).values
    chosen = scores > line
    ties = (scores == line).nonzero().squeeze(1)
    chosen[ties[: k - int(chosen.count_nonzero())]] = True
    return chosen


def keep_top(
    scores: Mapping[str, Tensor],
    masks: Masks,
    *,
    keep: Share = None,
    drop: Share = None,
    count: int | None = None,
    exclude: Iterable[str] = (),
    floor: int = 0,
    extra: int = 0,
) -> Masks:
    """The masks that keep the highest-scored weights of the whole network: exactly `target` of them, none revived.

    scores: a tensor of the mask's shape for every layer not excluded. exclude: layers, by name or shell pattern, that stay as they
    are and count towards the amount. floor: kept in every other layer at least, or all it has. extra: so many fewer are kept. Among
    equal scores the earlier layer and position stays. Raises UserError on scores that are NaN and on amounts that cannot be met.
    """
    excluded = set(matching(masks, exclude, "exclude"))
    held = sum(int(masks[name].count_nonzero()) for name in excluded)
    budget = max(0, target(masks, keep=keep, drop=drop, count=count, exclude=excluded) - held - extra)
    alive = {name: _alive(scores, masks, name) for name in masks if name not in excluded}
    sure = {name: highest(found, min(floor, len(found))) for name, found in alive.items()}
    least = sum(int(chosen.count_nonzero()) for chosen in sure.values())
    if budget < least:
        raise UserError(f"cannot keep only {budget} weights: {floor} in every layer that is not excluded makes {least}")
    if not alive:
        return dict(masks)
    rest = [found[~sure[name]] if floor else found for name, found in alive.items()]
    more = highest(torch.cat(rest), budget - least)
    for chosen, part in zip(sure.values(), torch.split(more, [len(part) for part in rest]), strict=True):
        chosen[~chosen] = part
    return {name: _scatter(mask, sure[name]) if name in sure else mask for name, mask in masks.items()}


def keep_top_each(
    scores: Mapping[str, Tensor],
    masks: Masks,
    *,
    keep: Share = None,
    drop: Share = None,
    count: int | None = None,
    rates: Mapping[str, float] | None = None,
    exclude: Iterable[str] = (),
    floor: int = 0,
    extra: int = 0,
) -> Masks:
    """The masks that keep the highest-scored weights of each layer: the same keep, drop or count in every one, none revived.

    rates: shares to drop of what is left in single layers, by name or shell pattern; they take the place of the common amount, and
    if that is not given the other layers stay as they are. exclude: layers that stay as they are. floor: kept in every other layer
    at least, or all it has. extra: so many fewer are kept in each. Raises UserError as `keep_top` does, and on a pattern that
    matches no layer.
    """
    own = per_layer(masks, rates or {})
    only_own = bool(own) and keep is None and drop is None and count is None
    excluded = set(matching(masks, exclude, "exclude"))
    result = dict(masks)
    for name, mask in masks.items():
        if name in excluded or (only_own and name not in own):
            continue
        found = _alive(scores, masks, name)
        amount = (None, own[name], None) if name in own else (keep, drop, count)
        number = max(0, wanted(mask.numel(), len(found), *amount, layer=name) - extra)
        result[name] = _scatter(mask, highest(found, max(number, min(floor, len(found)))))
    return result


def _alive(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], name: str) -> Tensor:
    """The scores (m,) of a layer's m kept weights, in order."""
    if name not in scores or scores[name].shape != masks[name].shape:
        raise ValueError(f"no scores of shape {tuple(masks[name].shape)} for {name}")
    found = scores[name].detach()[masks[name]]
    if bool(found.isnan().any()):
        raise UserError(f"the pruning scores of {name} are not numbers (NaN); did training diverge?")
    return found.float() if found.dtype in (torch.float16, torch.bfloat16) else found


def _scatter(mask: Tensor, chosen: Tensor) -> Tensor:
    return torch.zeros_like(mask).masked_scatter_(mask, chosen)


def compare(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """How alike two masks of one architecture are, over all layers.

    iou: |a & b| / |a | b|, the relative similarity of masks. overlap: |a & b| / min(|a|, |b|). agree: share of equal entries.
    chance: the iou expected of random masks that keep as many weights per layer. Raises UserError if the layers differ.
    """
    if {name: mask.shape for name, mask in a.items()} != {name: mask.shape for name, mask in b.items()}:
        raise UserError("the masks to compare are of different architectures: layers or shapes differ")
    kept_a, kept_b = counts(a), counts(b)
    both = sum(int((a[name] & b[name]).count_nonzero()) for name in a)
    in_a, in_b, size = sum(k for k, _ in kept_a.values()), sum(k for k, _ in kept_b.values()), sum(n for _, n in kept_a.values())
    expected = sum(k * kept_b[name][0] / max(1, n) for name, (k, n) in kept_a.items())
    return {
        "iou": both / (in_a + in_b - both) if in_a + in_b else 1.0,
        "overlap": both / min(in_a, in_b) if min(in_a, in_b) else 1.0,
        "agree": (size - in_a - in_b + 2 * both) / size if size else 1.0,
        "chance": expected / (in_a + in_b - expected) if in_a + in_b else 1.0,
    }
