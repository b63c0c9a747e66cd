"""Leaves the process as it was before foreign code ran in it: torch's settings, patched functions, streams, folder, environment."""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from rtbench.evaluation.guard import Changed
from rtbench.evaluation.settings import settings

STREAMS = (0, 1, 2)
OWN = ("manual_seed", "Storage")
"""What torch itself replaces: as its compiler is imported, and with the default dtype."""


@contextlib.contextmanager
def same_process(model: nn.Module) -> Iterator[None]:
    """Puts back what foreign code leaves changed in this process; in a child that it forked off, and that comes back here, ends.

    Raises Changed if it left functions of Python, torch, rtbench or the model's classes replaced, or a mode of torch's on; they are
    put back first. This contains carelessness, no ill will: code in the same process can do anything, so suites run what is not
    built in in workers.
    """
    pid, before, modes, streams = os.getpid(), settings(), _modes(), (sys.stdin, sys.stdout, sys.stderr)
    spaces = [(space, dict(vars(space))) for space in _spaces(model)]
    handles = [_duplicate(stream) for stream in STREAMS]  # last, and closed first: Ctrl-C must not leave them open
    try:
        yield
    finally:
        if os.getpid() != pid:
            os._exit(1)
        for stream, handle in zip(STREAMS, handles, strict=True):
            if handle is not None:
                os.dup2(handle, stream)
                os.close(handle)
        changed = [name for space, own in spaces for name in _put_back(space, own)]
        sys.stdin, sys.stdout, sys.stderr = (_open(stream, number) for number, stream in enumerate(streams))
        for (value, put), (now, _) in zip(before, settings(), strict=True):
            if now != value:
                put(value)
        changed += _leave(modes)
    if changed:
        raise Changed(f"it left {', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''} changed")


@contextlib.contextmanager
def usual() -> Iterator[None]:
    """New tensors and what is computed of them are float32, and gradients can be taken, whatever the caller set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """torch computes in so many threads; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _duplicate(stream: int) -> int | None:
    try:
        return os.dup(stream)
    except OSError:  # it was closed before
        return None


def _open(stream: Any, number: int) -> Any:
    """The stream, or where it was closed a new one to the same place."""
    closed = getattr(stream, "closed", False)
    return open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False) if closed else stream


def _spaces(model: nn.Module) -> list[Any]:
    """Modules and classes whose functions a verdict rests on, those that the model's classes inherit from among them."""
    own = [module for name, module in sys.modules.items() if name.startswith("rtbench.") and module is not None]
    classes = {value: None for module in own for value in vars(module).values() if _is_own(value)}
    classes |= {kind: None for module in model.modules() for kind in type(module).__mro__ if kind is not object}
    return [builtins, torch, torch.Tensor, nn.Module, nn.functional, Fraction, *own, *classes]


def _is_own(value: Any) -> bool:
    return isinstance(value, type) and str(value.__module__).startswith("rtbench.")


def _put_back(space: Any, before: dict[str, Any]) -> list[str]:
    """Gives a module or class its functions back; those that had been replaced, and those that a class had been given."""
    now = dict(vars(space))
    changed = [name for name, value in before.items() if now.get(name) is not value and callable(value)]
    for name in changed:
        setattr(space, name, before[name])
    added = [name for name, value in now.items() if name not in before and callable(value)] if isinstance(space, type) else []
    for name in added:
        delattr(space, name)
    return [f"{space.__name__}.{name}" for name in changed + added if not (space is torch and name in OWN)]


def _modes() -> tuple[int, int]:
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


def _leave(before: tuple[int, int]) -> list[str]:
    """Leaves modes of torch's that change what its functions do."""
    left = []
    for depth, now, pop in zip(before, _modes(), (torch._C._pop_torch_function_stack, torch._C._pop_torch_dispatch_stack), strict=True):
        left += [type(pop()).__name__ for _ in range(now - depth)]
    return left
