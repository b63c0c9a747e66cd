"""The memory layout of convolutions in training: channels last on a CPU, where a network can do with it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import nn

from rtbench.builtin.trainers.course import Course
from rtbench.builtin.trainers.descent import losses
from rtbench.data.splits import take
from rtbench.parts.masks import conv_only


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


def one_step(course: Course) -> None:
    """The loss and the gradients of two samples, and a forward in eval mode, as probes make on the way."""
    split = course.data.train
    samples = take(split, torch.arange(2) % len(split))
    losses(course, 0, course.model, samples, course.objective).mean().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        course.model.eval().forward(samples[0])


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
