"""Several networks as one module, and one optimizer for all of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer


class Stack(nn.Module):
    """Networks of one kind as one: (networks * n, c, h, w) -> (networks * n, classes), an equal share of the rows for each, in order.

    Their parameters and buffers become views of the stack's: each network is at any time what the stack has made of it.
    """

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.networks = len(models)
        own = models[0].named_parameters()
        self.own = {name: nn.Parameter(_joined([m.get_parameter(name) for m in models]), p.requires_grad) for name, p in own}
        self.held = {name: _joined([m.get_buffer(name) for m in models]) for name, _ in models[0].named_buffers()}
        self.shell = copy.deepcopy(models[0]).to("meta")
        self.shell._forward_hooks.clear()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(self.networks, -1, *x.shape[1:])
        answers: Tensor = vmap(self._one)(self.own, self.held, rows)
        return answers.flatten(0, 1)

    def _one(self, own: Mapping[str, Tensor], held: Mapping[str, Tensor], x: Tensor) -> Any:
        return functional_call(self.shell, {**own, **held}, (x,))


def _joined(each: Sequence[Tensor]) -> Tensor:
    joined = torch.stack([tensor.data for tensor in each])
    for tensor, own in zip(each, joined, strict=True):
        tensor.data = own
    return joined


class States:
    """What an optimizer remembers: one for the stack, views of it in the networks' own, which save it and never step.

    train: the parameters that the stack's optimizer steps. own: those of each network, in the same order.
    """

    def __init__(self, opt: Optimizer, train: list[nn.Parameter], opts: list[Optimizer], own: list[list[nn.Parameter]]) -> None:
        self.opt, self.opts, self.shared = opt, opts, False
        self.rows = list(zip(train, zip(*own, strict=True), strict=True))

    def gather(self) -> None:
        """Gives the stack's optimizer what the networks' own were restored to."""
        for parameter, own in self.rows:
            each = [opt.state[p] for opt, p in zip(self.opts, own, strict=True) if p in opt.state]
            if each:
                self.opt.state[parameter] = {name: _gathered([state[name] for state in each], parameter) for name in each[0]}

    def share(self) -> None:
        """Once there is something to share, which is after the first step."""
        if self.shared:
            return
        self.shared = True
        for parameter, own in self.rows:
            state = self.opt.state[parameter]
            for number, (opt, p) in enumerate(zip(self.opts, own, strict=True)):
                opt.state[p] = {name: value[number] if _of_each(value, parameter) else value for name, value in state.items()}


def _of_each(value: Any, parameter: Tensor) -> bool:
    """Whether this state has a value for each weight; counts of steps are the same for all."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _gathered(values: list[Any], parameter: Tensor) -> Any:
    if not isinstance(values[0], Tensor):
        return values[0]
    return torch.stack(values) if values[0].shape == parameter.shape[1:] else values[0].clone()
