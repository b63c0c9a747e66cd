"""Runs code that is not careful: what it changes in a model, in the global generators and on the screen is put back."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator

import numpy
import torch
from torch import nn


@contextlib.contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Eval mode, no parameter requires grad, global generators seeded, stdout swallowed; everything as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    python, numpys = random.getstate(), numpy.random.get_state()
    ready = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if ready else []
    with torch.random.fork_rng(devices), contextlib.redirect_stdout(io.StringIO()):
        try:
            model.eval()
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numpys)
            for module, training in modes:
                module.training = training
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)
