"""How sparse, how large, how costly: density and sparsity, parameters, multiply-accumulates, and what it took to get here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rtbench.parts.kinds import Measure, declare
from rtbench.parts.masks import Masks, conv_only


def density(model: nn.Module, masks: Masks) -> Measure:
    """The measured share of weights that are not zero: of prunable ones (its own value), of convolutions', of all parameters.

    Also one number per layer, "layer.NAME". A pruned weight that is not 0 is an error, so masks and weights cannot disagree.
    """
    counts = nonzero(model, masks)
    total = sum(mask.numel() for mask in masks.values())
    others = [p for name, p in model.named_parameters() if name not in masks]
    everything = sum(p.numel() for p in model.parameters())
    numbers: dict[str, float | None] = {
        "": share(sum(counts.values()), total),
        "all": share(sum(counts.values()) + sum(int(p.count_nonzero()) for p in others), everything),
    }
    convs = [name for name in conv_only(model) if name in masks]
    if convs:
        numbers["conv"] = share(sum(counts[name] for name in convs), sum(masks[name].numel() for name in convs))
    return Measure(numbers | {f"layer.{name}": share(count, masks[name].numel()) for name, count in counts.items()})


def sparsity(model: nn.Module, masks: Masks) -> Measure:
    """The measured share of weights that are zero, as `density`: of prunable ones, "conv", "all" parameters, and per layer."""
    return Measure({name: None if value is None else 1 - value for name, value in density(model, masks).numbers.items()})


def parameters(model: nn.Module, masks: Masks) -> Measure:
    """How many parameters are not zero; "all" counts every one, "prunable" those that pruners may remove."""
    alive = sum(int(p.count_nonzero()) for p in model.parameters())
    prunable = sum(mask.numel() for mask in masks.values())
    return Measure({"": float(alive), "all": float(sum(p.numel() for p in model.parameters())), "prunable": float(prunable)})


def macs(model: nn.Module, masks: Masks, data: Any) -> Measure:
    """Multiply-accumulates of Conv and Linear layers for one image, counting weights that are not zero; "dense" counts all."""
    found = {"": 0.0, "dense": 0.0}

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = module.weight  # type: ignore[assignment]  # no parameter where it is computed, as under weight_norm
        # A weight is used once per position of the output, pixels of a convolution or tokens of a linear layer, but once per pixel of
        # the input of a transposed convolution.
        found_at = inputs[0] if isinstance(module, nn.modules.conv._ConvTransposeNd) else output
        positions = found_at[0].numel() // found_at.shape[-1 if isinstance(module, nn.Linear) else 1]
        found[""] += int(weight.count_nonzero()) * positions
        found["dense"] += weight.numel() * positions

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [layer.register_forward_hook(after) for layer in layers]
    try:
        with torch.no_grad():
            model(torch.zeros(1, *data.shape, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return Measure(dict(found))


@declare(version=2)
def cost(history: tuple[dict[str, Any], ...]) -> Measure:
    """Gradient passes (samples whose loss was differentiated) of everything that led to the model; "forwards" likewise.

    "last" are the gradient passes of the last training, "before" those of all before it, such as finding a mask. "seconds" is the
    wall-clock time of all stages, "seconds.last" and "seconds.before" likewise, "seconds.train" and "seconds.prune" that of one verb
    alone; left out where one is not known.
    """
    last = max((place for place, stage in enumerate(history) if stage["verb"] == "train"), default=None)
    sides = {} if last is None else {"before": history[:last], "last": history[last : last + 1]}
    verbs = {verb: tuple(stage for stage in history if stage["verb"] == verb) for verb in ("train", "prune")}
    times = {"seconds": history} | {f"seconds.{name}": stages for name, stages in {**verbs, **sides}.items()}
    seconds = {name: sum(s["seconds"] for s in stages) for name, stages in times.items() if all(s["seconds"] is not None for s in stages)}
    numbers = {"": history} | sides
    passes: dict[str, float | None] = {name: float(sum(stage["gradients"] for stage in stages)) for name, stages in numbers.items()}
    return Measure({**passes, "forwards": float(sum(stage["forwards"] for stage in history))}, timings=seconds)


def nonzero(model: nn.Module, masks: Masks) -> dict[str, int]:
    """Non-zero weights per prunable layer; ValueError if a pruned weight is not exactly 0."""
    for name, mask in masks.items():
        if bool((model.get_parameter(name).detach()[~mask] != 0).any()):
            raise ValueError(f'pruned weights of "{name}" are not 0')
    return {name: int(model.get_parameter(name).count_nonzero()) for name in masks}


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
