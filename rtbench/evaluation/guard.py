"""Leaves a model as it was found: modes, requires_grad, .grad, buffers, weights, hooks and modules; and the global generators."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from rtbench.errors import UserError


class Changed(Exception):
    """A part changed weights or buffers that it must leave alone."""


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, no parameter requires grad; afterwards every mode, flag, hook and .grad is as before.

    Raises Changed if a weight, a buffer or a module was altered or replaced; it is then put back first, so that nothing later is
    measured on it.
    """
    modules = [(name, module, type(module), _attributes(module)) for name, module in model.named_modules()]
    flags = [(p, p.requires_grad, p.grad, [set(hooks) for hooks in _hooks(p)]) for p in model.parameters()]
    state = [(name, tensor, tensor.detach().clone()) for name, tensor in tensors(model)]
    try:  # Ctrl-C may come at once
        model.eval()
        for parameter, *_ in flags:
            parameter.requires_grad_(False)
            parameter.grad = None  # a backward pass would add to it in place
        yield
    finally:
        changed = [name or "the network" for name, module, kind, before in modules if _put_back(module, kind, before)]
        for parameter, flag, grad, hooks in flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad
            for now, known in zip(_hooks(parameter), hooks, strict=True):
                for number in now.keys() - known:
                    del now[number]
        with torch.no_grad():
            for name, tensor, before in state:
                if not same(tensor, before):
                    changed.append(name)
                    if (tensor.shape, tensor.dtype, tensor.device) != (before.shape, before.dtype, before.device):
                        tensor.data = before
                    tensor.copy_(before)
    if changed:
        raise Changed(f"it changed {', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''} of the model")


Attributes = dict[str, tuple[Any, dict[Any, Any] | None]]


def _attributes(module: nn.Module) -> Attributes:
    """Every attribute of one module, of dictionaries (parameters, buffers, submodules, hooks) also what is in them."""
    return {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in vars(module).items()}


def _put_back(module: nn.Module, kind: type, before: Attributes) -> bool:
    """Gives a module its class and attributes back; whether its class or one of its parameters, buffers or submodules was another."""
    changed, now = type(module) is not kind, vars(module)
    if changed:
        module.__class__ = kind
    for name in now.keys() - before.keys():
        del now[name]
    for name, (value, content) in before.items():
        if content is not None and (now.get(name) is not value or not _alike(value, content)):
            changed |= name in ("_parameters", "_buffers", "_modules")
            value.clear()
            value.update(content)
        now[name] = value
    return changed


def _hooks(parameter: Tensor) -> list[dict[int, Any]]:
    """Hooks of a parameter's gradients, by number."""
    return [parameter._backward_hooks or {}, parameter._post_accumulate_grad_hooks or {}]


def _alike(a: Any, b: dict[Any, Any]) -> bool:
    return list(a) == list(b) and all(a[name] is b[name] for name in b)


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those outside the state dict included."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def same(a: Tensor, b: Tensor) -> bool:
    """Bit-wise equality, of dtype and device too; NaN equals NaN."""
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return bool(((a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() else a == b).all())


@contextlib.contextmanager
def input_kept(x: Tensor) -> Iterator[None]:
    """UserError if a forward within changes its input x, be it only to the same numbers: no gradient could be taken there.

    Whatever asks such a model would be judged on another image than the one it asked about.
    """
    before, version = x.clone(), x._version
    yield
    if x._version != version or not same(x, before):
        raise UserError("model: its forward changes its input in place; write x = x - mean, not x -= mean")


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seeds the global generators for code that draws from them, and puts them, and the tracer, back afterwards."""
    devices = list(range(torch.cuda.device_count())) if _cuda() else []
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


@contextlib.contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """For attacks that call a library: eval mode, no parameter requires grad, global generators seeded; all as before afterwards.

    Modes, requires_grad, .grad, hooks, the generators of Python, numpy and torch, and the tracer are put back. Raises an error, after
    putting them back, if weights, buffers or modules were changed.
    """
    with own_randomness(seed), frozen(model):
        yield


def randomness() -> dict[str, Any]:
    """The state of every global generator, as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, *rest = numpy.random.get_state(legacy=True)
    own = torch.tensor(keys.astype("int64"))  # type: ignore[union-attr]
    return {
        "python": [version, torch.tensor(words), gauss], "numpy": [name, own, *rest],
        "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if _cuda() else [],
    }  # fmt: skip


def set_randomness(state: dict[str, Any]) -> None:
    """Puts every global generator into a state that `randomness` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
