"""Leaves the process as it was before foreign code ran in it: torch's settings, patched functions, streams, folder, environment."""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _device

from rtbench.evaluation.guard import Changed

CUDNN, MKLDNN, CUBLAS = torch.backends.cudnn, torch.backends.mkldnn, torch.backends.cuda.matmul
SWITCHES = (
    (CUDNN, "enabled"), (CUDNN, "benchmark"), (CUDNN, "deterministic"), (CUDNN, "allow_tf32"), (MKLDNN, "enabled"),
    (MKLDNN, "deterministic"), (CUBLAS, "allow_tf32"),
)  # fmt: skip
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
    pid, settings, modes, handles = os.getpid(), _settings(), _modes(), [_duplicate(stream) for stream in STREAMS]
    spaces, streams = [(space, dict(vars(space))) for space in _spaces(model)], (sys.stdin, sys.stdout, sys.stderr)
    try:
        yield
    finally:
        if os.getpid() != pid:
            os._exit(1)
        changed = [name for space, before in spaces for name in _put_back(space, before)]
        for stream, handle in zip(STREAMS, handles, strict=True):
            if handle is not None:
                os.dup2(handle, stream)
                os.close(handle)
        sys.stdin, sys.stdout, sys.stderr = (_open(stream, number) for number, stream in enumerate(streams))
        for (value, put), (now, _) in zip(settings, _settings(), strict=True):
            if now != value:
                put(value)
        changed += _leave(modes)
    if changed:
        raise Changed(f"it left {', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''} changed")


@contextlib.contextmanager
def usual() -> Iterator[None]:
    """New tensors are float32 and gradients can be taken, whatever the caller set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False):
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


def _settings() -> list[tuple[Any, Callable[[Any], Any]]]:
    """The value of every global setting, and what sets it."""
    found: list[tuple[Any, Callable[[Any], Any]]] = [
        (torch.is_grad_enabled(), torch.set_grad_enabled), (torch.get_default_dtype(), torch.set_default_dtype),
        (_device.CURRENT_DEVICE, torch.set_default_device), (torch.get_num_threads(), torch.set_num_threads),
        (torch.is_anomaly_enabled(), torch.set_anomaly_enabled),
        (torch.get_float32_matmul_precision(), torch.set_float32_matmul_precision),
        ((torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()), _set_deterministic),
        (_folder(), _set_folder), (dict(os.environ), _set_environment),
    ]  # fmt: skip
    found += [((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)), _set_autocast) for kind in ("cpu", "cuda")]
    return found + [((backend, name, getattr(backend, name)), _set_switch) for backend, name in SWITCHES]


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_autocast(value: tuple[str, bool, torch.dtype]) -> None:
    torch.set_autocast_enabled(value[0], value[1])
    torch.set_autocast_dtype(value[0], value[2])


def _set_switch(value: tuple[Any, str, Any]) -> None:
    setattr(*value)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _set_folder(folder: str | None) -> None:
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


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
    """Modules and classes whose functions a verdict rests on."""
    own = [module for name, module in sys.modules.items() if name.startswith("rtbench.") and module is not None]
    return [builtins, torch, torch.Tensor, nn.Module, nn.functional, *own, *{type(module): None for module in model.modules()}]


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
