"""Channels of BatchNorm that images no longer reach: found by running the network, not by reading its code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rtbench.parts.masks import CONV, NORM, Masks, normalisation

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]

FLAGS, IMAGES = 2, 8
"""Images per forward pass, with every number a flag and with true weights."""
FLAT = 1e-5
"""A channel is constant if its values spread by no more than this share of the largest: rounding, where equal sums are added otherwise."""

HELP = """
channels: also mask weight and bias of the BatchNorm channels that no surviving path from the image reaches
"""


def channels_too(prune: Callable[..., Masks]) -> Callable[..., Masks]:
    """The pruner with one more knob, `channels`, explained in `HELP`; it asks for `data`, of which only the shape is used."""
    signature = inspect.signature(prune)
    words = inspect.Parameter.POSITIONAL_OR_KEYWORD

    @functools.wraps(prune)
    def both(model: nn.Module, masks: Masks, data: Any, rng: torch.Generator, *, channels: bool = False, **knobs: Any) -> Masks:
        found = prune(model, masks, rng, **knobs)
        return with_channels(model, found, data.shape) if channels else found

    more = [
        inspect.Parameter("data", words, annotation=Any),
        inspect.Parameter("channels", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool),
    ]
    together = sorted([*signature.parameters.values(), *more], key=lambda parameter: parameter.kind)
    both.__dict__["__signature__"] = signature.replace(parameters=together)
    both.__annotations__ = {**prune.__annotations__, "data": Any, "channels": bool}
    both.__doc__ = f"{prune.__doc__}{HELP.lstrip()}"
    both.__dict__["passes"] = passes
    return both


def passes(knobs: dict[str, Any], sizes: dict[str, int], nested: Callable[..., Any]) -> tuple[float, float]:
    """What `rtbench plan` predicts: the forward passes that `with_channels` makes, unless a channel turns out not to be constant."""
    return (FLAGS + IMAGES if knobs["channels"] else 0, 0)


def with_channels(model: nn.Module, masks: Masks, shape: tuple[int, ...]) -> Masks:
    """The masks, and one (c,) of weight and bias of every BatchNorm that has dead channels: False for those.

    A channel is dead if what BatchNorm is given of it is a constant, whatever the image and the kept weights, because no path of kept
    weights leads to it from the image. Two tests must both say so, and neither needs to know the architecture:

    1. Reach. A forward pass with 1 for kept and 0 for pruned weights, no biases, BatchNorm the identity and a positive image: nothing
       cancels, as all numbers are at least 0, and ReLU stops nothing. Outputs of layers become flags, > 0 or not, so nothing underflows.
       A channel is reached if it is > 0 anywhere. What residual paths feed is reached by way of the sum itself.
    2. Constancy. A forward pass of random images in eval mode with the true weights, dead channels masked: a dead channel must not
       vary over images or pixels. It refutes the first test where that errs: behind normalisations that subtract a mean other than
       BatchNorm, and where the zeros around a map give a constant a border.

    Masking replaces the constant that a dead channel adds behind it, bias - mean * weight / deviation and the like, by 0, and with it
    whatever else only that constant fed is dead. The network is left as it was. Source: Li et al. 2020, arXiv:2003.05733, whose code
    takes the layer listed before a BatchNorm for its input, which is wrong where blocks begin with BatchNorm.
    """
    reached = _reached(model, masks, shape)
    dead = {name: ~flags for name, flags in reached.items()}
    while True:
        constant = _constant(model, masks | _as_masks(model, dead), shape)
        left = {name: flags & constant[name] for name, flags in dead.items()}
        if all(torch.equal(left[name], dead[name]) for name in dead):
            break
        dead = left
    return masks | {name: mask & masks.get(name, mask) for name, mask in _as_masks(model, dead).items()}


def _as_masks(model: nn.Module, dead: Mapping[str, Tensor]) -> Masks:
    """Masks of the weights and biases of the layers that have dead channels."""
    found = {name: ~flags for name, flags in dead.items() if bool(flags.any())}
    return {name: found[name.rpartition(".")[0]] for name in normalisation(model) if name.rpartition(".")[0] in found}


def _reached(model: nn.Module, masks: Masks, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """By BatchNorm layer, whether each channel of its input is reached from the image: bool (c,)."""
    found: dict[str, Tensor] = {}

    def flagged(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output > 0).to(output.dtype)

    def passed(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        flags = inputs[0] > 0
        alive = _by_channel(flags).any(1)
        found[name] = found[name] | alive if name in found else alive
        weight = module._parameters["weight"]
        kept = 1 if weight is None else weight.view(-1, *[1] * (flags.dim() - 2))
        return flags.to(output.dtype) * kept  # a masked channel passes nothing on

    values = {name: _flag(name, parameter, masks) for name, parameter in model.named_parameters()}
    hooks: list[tuple[nn.Module, Hook]] = [(module, flagged) for module in model.modules() if isinstance(module, (*CONV, nn.Linear))]
    hooks += [(module, functools.partial(passed, name)) for name, module in _norms(model)]
    _forward(model, values, 2 * torch.ones(FLAGS, *shape), hooks)  # 2: above 0 even after a mean is subtracted
    return found


def _flag(name: str, parameter: Tensor, masks: Masks) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros_like(parameter)
    return masks[name].to(parameter.dtype) if name in masks else torch.ones_like(parameter)


def _constant(model: nn.Module, masks: Masks, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """By BatchNorm layer, whether each channel of its input is the same for random images and at all pixels: bool (c,)."""
    found: dict[str, Tensor] = {}

    def seen(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values = _by_channel(inputs[0])
        flat = values.amax(1) - values.amin(1) <= FLAT * values.abs().amax(1)  # False for NaN
        found[name] = found[name] & flat if name in found else flat

    values = {name: model.get_parameter(name).detach().masked_fill(~mask, 0) for name, mask in masks.items()}
    images = torch.rand(IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    _forward(model, values, images, [(module, functools.partial(seen, name)) for name, module in _norms(model)])
    return found


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, NORM)]


def _by_channel(values: Tensor) -> Tensor:
    """(n, c, ...) as (c, m)."""
    return values.transpose(0, 1).flatten(1)


@torch.no_grad()
def _forward(model: nn.Module, values: dict[str, Tensor], images: Tensor, hooks: list[tuple[nn.Module, Hook]]) -> None:
    """One forward pass in eval mode with these parameters in place of the network's own, and these hooks."""
    like = next(model.parameters())
    with _evaluated(model, hooks):
        torch.func.functional_call(model, values, (images.to(like),))


@contextmanager
def _evaluated(model: nn.Module, hooks: list[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Eval mode with forward hooks; afterwards modes and hooks are as before."""
    modes = [(module, module.training) for module in model.modules()]
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    model.eval()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
