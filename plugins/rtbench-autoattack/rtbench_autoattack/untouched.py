"""Runs pyautoattack without its side effects."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy
import torch
from pyautoattack import checks
from torch import nn


@contextlib.contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Eval mode, no parameter requires grad, global generators seeded; everything as before afterwards.

    Frozen parameters change no verdict: FAB would only compute gradients of weights, use none and leave them in `.grad`. The library
    counts calls of gradient functions inside a forward pass in a module global that it never resets, and leaves no tracer behind
    (`sys.settrace(None)`): the counts start at 0 here, and both are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    python, numpys, tracer, counts = random.getstate(), numpy.random.get_state(), sys.gettrace(), dict(checks.funcs)
    ready = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if ready else []
    with torch.random.fork_rng(devices):
        try:
            model.eval()
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            checks.funcs.update(dict.fromkeys(checks.funcs, 0))
            yield
        finally:
            checks.funcs.update(counts)
            sys.settrace(tracer)
            random.setstate(python)
            numpy.random.set_state(numpys)
            for module, training in modes:
                module.training = training
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)
