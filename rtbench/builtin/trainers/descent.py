"""One optimizer step that leaves pruned weights at 0, and the optimizers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from rtbench.data.splits import take
from rtbench.parts.kinds import Progress
from rtbench.parts.masks import Masks, conv_only


class Pruned:
    """The parameters, by name, that masks prune, with the masks as factors; layers with nothing pruned cost nothing."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Masks) -> None:
        partial = [name for name, mask in masks.items() if parameters[name].requires_grad and not bool(mask.all())]
        self.weights = [parameters[name] for name in partial]
        # In the weights' memory layout, without which all layers could not be done in one call.
        self.factors = [torch.empty_like(weight.data).copy_(masks[name]) for name, weight in zip(partial, self.weights, strict=True)]

    def zero_(self) -> None:
        """Sets pruned weights to 0, all layers in one call."""
        if self.weights:
            torch._foreach_mul_([weight.data for weight in self.weights], self.factors)

    def zero_grad_(self) -> None:
        """Sets the gradients of pruned weights to 0."""
        for weight, factor in zip(self.weights, self.factors, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(factor)


@contextmanager
def channels_last(model: nn.Module, rng: torch.Generator, trial: Callable[[], object]) -> Iterator[None]:
    """Convolutions in the memory layout that is faster on a CPU, see benchmarks/vgg.py, if the trial of a step can do with it.

    Afterwards as before. trial: draws from `rng` and from the global generators alone.
    """
    if next(model.parameters()).device.type != "cpu" or not conv_only(model) or any(map(_overruns, model.modules())):
        yield
        return
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        if not _runs(model, rng, trial):
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def one_step(model: nn.Module, split: Any, objective: Callable[..., Any], start: Progress) -> None:
    """The loss and the gradients of two samples, and a forward in eval mode, as probes make on the way."""
    x, y = take(split, torch.arange(2) % len(split))
    objective(model, x, y, start).mean().backward()
    with torch.no_grad():
        model.eval().forward(x)


def _runs(model: nn.Module, rng: torch.Generator, trial: Callable[[], object]) -> bool:
    """Whether a step gets through: one that calls `view` on a map, or on the gradient of images, cannot in every layout.

    Past the hooks of the network, and with its modes, tensors, gradients and all generators put back, so that nothing comes of it.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    held = [(tensor.data, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    state, drawn, more, hooks = rng.get_state(), random.getstate(), numpy.random.get_state(), dict(model._forward_hooks)
    try:
        model._forward_hooks.clear()
        with torch.random.fork_rng(devices=[]):
            trial()
    except Exception:  # what is wrong in every layout, training meets again
        return False
    finally:
        model._forward_hooks.update(hooks)
        rng.set_state(state)
        random.setstate(drawn)
        numpy.random.set_state(more)
        for module, mode in modes:
            module.training = mode
        for module, own in buffers:
            module._buffers.update(own)
        for tensor, before in held:
            tensor.copy_(before)
        for parameter, grad in grads:
            parameter.grad = grad
    return True


def _overruns(layer: nn.Module) -> bool:
    """Whether oneDNN, in this layout, would write past a buffer and crash, or return a wrong gradient of the weights.

    So it does for 1x1 convolutions with a stride and fewer input channels than a vector holds, at most 16: oneDNN issue 6035.
    """
    return (
        isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1} and max(layer.stride) > 1 and layer.in_channels < 16 * layer.groups
    )


class Net(NamedTuple):
    """What a step changes: a network, or several as one. running: (networks,), each one's losses added up."""

    model: nn.Module
    opt: torch.optim.Optimizer
    train: list[nn.Parameter]
    weights: Pruned
    running: Tensor


def descend(
    net: Net, objective: Callable[..., Tensor], samples: tuple[Tensor, Tensor], progress: Progress, rate: float, clip: float | None
) -> None:
    """One optimizer step at this rate on samples (networks * n), pruned weights at 0 afterwards."""
    losses = objective(net.model, *samples, progress).reshape(len(net.running), -1).mean(1)
    net.opt.zero_grad()
    losses.sum().backward()  # type: ignore[no-untyped-call]
    _update(net, rate, clip)
    net.running.add_(losses.detach())


@torch.no_grad()
def _update(net: Net, rate: float, clip: float | None) -> None:
    if clip is not None:
        # Gradients of pruned weights must not count in the norm; without clipping they change nothing that is kept.
        net.weights.zero_grad_()
        nn.utils.clip_grad_norm_(net.train, clip)
    for group in net.opt.param_groups:
        group["lr"] = rate
    net.opt.step()
    net.weights.zero_()


def make_optimizer(name: str, train: list[nn.Parameter], lr: float, momentum: float, nesterov: bool, decay: float) -> torch.optim.Optimizer:
    """The optimizer, in torch's fused form where there is one."""
    if name == "sgd":
        return torch.optim.SGD(train, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(train, lr=lr, momentum=momentum, weight_decay=decay, foreach=True)
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(train, lr=lr, weight_decay=decay, fused=True)
