"""Leaves a model as it was found: modes, requires_grad, .grad, buffers, weights and the global generators."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy
import torch
from torch import Tensor, nn


class Changed(Exception):
    """A part changed weights or buffers that it must leave alone."""


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, no parameter requires grad; afterwards every mode, flag and .grad is as before.

    Raises Changed if a weight or buffer was altered; it is then put back first, so that nothing later is measured on it.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    state = [(name, tensor, tensor.detach().clone()) for name, tensor in tensors(model)]
    model.eval()
    for parameter, _, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag, grad in flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad
        changed = [name for name, tensor, before in state if not same(tensor, before)]
        with torch.no_grad():
            for name, tensor, before in state:
                if name in changed:
                    tensor.copy_(before)
    if changed:
        raise Changed(f"it changed {', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''} of the model")


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those outside the state dict included."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def same(a: Tensor, b: Tensor) -> bool:
    """Bit-wise equality; NaN equals NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() else a == b).all())


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seeds the global generators for code that draws from them, and puts them, and the tracer, back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpys, tracer = random.getstate(), numpy.random.get_state(), sys.gettrace()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numpys)
            if sys.gettrace() is not tracer:
                sys.settrace(tracer)
