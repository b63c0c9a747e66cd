"""One optimizer step that leaves pruned weights at 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtbench.builtin.trainers.course import Course
from rtbench.parts.kinds import Progress
from rtbench.parts.masks import Masks

Objective = Callable[[nn.Module, Tensor, Tensor, Progress], Tensor]


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


class Net(NamedTuple):
    """What a step changes: a network, or several as one. running: (networks,), each one's losses added up."""

    model: nn.Module
    opt: torch.optim.Optimizer
    train: list[nn.Parameter]
    weights: Pruned
    running: Tensor


def losses(course: Course, step: int, model: nn.Module, samples: tuple[Tensor, Tensor], objective: Objective) -> Tensor:
    """The objective's losses (n,) at this step, in the precision of the course."""
    x, y = samples
    if course.precision == "exact":
        return objective(model, x, y, course.progress(step))
    with torch.autocast(x.device.type, torch.bfloat16):
        try:
            return objective(model, x, y, course.progress(step))
        finally:
            torch.clear_autocast_cache()  # torch itself would keep the weights of this step within another autocast, such as a stage's


def descend(net: Net, course: Course, step: int, samples: tuple[Tensor, Tensor], objective: Objective) -> None:
    """One optimizer step on samples (networks * n), pruned weights at 0 afterwards. course: of the network, or of any of several."""
    means = losses(course, step, net.model, samples, objective).reshape(len(net.running), -1).mean(1)
    net.opt.zero_grad()
    means.sum().backward()  # type: ignore[no-untyped-call]
    _update(net, course.rate(step), course.clip)
    net.running.add_(means.detach())


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
