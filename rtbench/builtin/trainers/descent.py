"""One optimizer step that leaves pruned weights at 0, and the optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rtbench.parts.masks import Masks, conv_only


class Pruned:
    """The weights that masks prune, with the masks as factors; layers with nothing pruned cost nothing."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        partial = [name for name, mask in masks.items() if model.get_parameter(name).requires_grad and not bool(mask.all())]
        self.weights = [model.get_parameter(name) for name in partial]
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
def channels_last(model: nn.Module, shape: tuple[int, ...]) -> Iterator[None]:
    """Convolutions in the memory layout that is faster on a CPU, see benchmarks/vgg.py, for images of this shape; then as before."""
    if next(model.parameters()).device.type != "cpu" or not conv_only(model) or any(map(_overruns, model.modules())):
        yield
        return
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        if not _runs(model, shape):
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _runs(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a forward gets through: one that calls `view` on what a convolution returned cannot in every layout.

    In eval mode and past the hooks of the network, so that nothing is counted, drawn or moved by it.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.forward(torch.zeros(2, *shape))
    except RuntimeError:
        return False
    finally:
        for module, mode in training.items():
            module.training = mode
    return True


def _overruns(layer: nn.Module) -> bool:
    """Whether oneDNN, in this layout, would write past a buffer and crash, or return a wrong gradient of the weights.

    So it does for 1x1 convolutions with a stride and fewer input channels than a vector holds, at most 16: oneDNN issue 6035.
    """
    return (
        isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1} and max(layer.stride) > 1 and layer.in_channels < 16 * layer.groups
    )


@torch.no_grad()
def update(opt: torch.optim.Optimizer, rate: float, weights: Pruned, train: list[nn.Parameter], clip: float | None) -> None:
    """One optimizer step at learning rate `rate`, pruned weights at 0 afterwards."""
    if clip is not None:
        # Gradients of pruned weights must not count in the norm; without clipping they change nothing that is kept.
        weights.zero_grad_()
        nn.utils.clip_grad_norm_(train, clip)
    for group in opt.param_groups:
        group["lr"] = rate
    opt.step()
    weights.zero_()


def make_optimizer(name: str, train: list[nn.Parameter], lr: float, momentum: float, nesterov: bool, decay: float) -> torch.optim.Optimizer:
    """The optimizer, in torch's fused form where there is one."""
    if name == "sgd":
        return torch.optim.SGD(train, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(train, lr=lr, momentum=momentum, weight_decay=decay, foreach=True)
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(train, lr=lr, weight_decay=decay, fused=True)
