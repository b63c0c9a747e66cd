"""The network that is searched with: the judged one, or a copy of it that answers sooner."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def searcher(model: nn.Module, like: Tensor, precision: str) -> tuple[nn.Module, torch.dtype]:
    """(network, its dtype). "bf16": a copy in bfloat16. Convolutions on a CPU: a copy with channels last, which there is faster.

    A copy's answers may differ in the last bits, so claims found with it hold only once `model` has said so. Where a copy cannot be
    made, or answers otherwise to `like` (1, c, h, w), the network itself serves. Nothing here is decided by a clock, lest two runs differ.
    """
    if precision == "bf16":
        return copy.deepcopy(model).bfloat16(), torch.bfloat16
    if like.device.type == "cpu" and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        found = _channels_last(model, like)
        if found is not None:
            return found, torch.float32
    return model, torch.float32


def _channels_last(model: nn.Module, like: Tensor) -> nn.Module | None:
    try:
        found = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            same = torch.allclose(found(like), model(like), rtol=1e-3, atol=1e-4)
    except Exception:  # such as a `view` of what has another layout now
        return None
    return found if same else None
