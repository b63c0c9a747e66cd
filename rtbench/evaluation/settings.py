"""What is set for the whole process, of torch, numpy, Python and the system: read, and put back."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch.nn.modules import module as modules
from torch.utils import _device

CUDNN, MKLDNN, CUBLAS = torch.backends.cudnn, torch.backends.mkldnn, torch.backends.cuda.matmul
SWITCHES = (
    (CUDNN, "enabled"), (CUDNN, "benchmark"), (CUDNN, "deterministic"), (CUDNN, "allow_tf32"), (MKLDNN, "enabled"),
    (MKLDNN, "deterministic"), (CUBLAS, "allow_tf32"),
)  # fmt: skip
LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]


def settings() -> list[tuple[Any, Callable[[Any], Any]]]:
    """The value of every global setting, and what sets it."""
    found: list[tuple[Any, Callable[[Any], Any]]] = [
        (torch.is_grad_enabled(), torch.set_grad_enabled), (torch.get_default_dtype(), torch.set_default_dtype),
        (_device.CURRENT_DEVICE, torch.set_default_device), (torch.get_num_threads(), torch.set_num_threads),
        (torch.is_anomaly_enabled(), torch.set_anomaly_enabled),
        (torch.get_float32_matmul_precision(), torch.set_float32_matmul_precision),
        ((torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()), _set_deterministic),
        (_folder(), _set_folder), (dict(os.environ), _set_environment), (_umask(), os.umask), (gc.isenabled(), _set_collector),
        (sys.getrecursionlimit(), sys.setrecursionlimit), (sys.getprofile(), sys.setprofile), (list(warnings.filters), _set_filters),
        (numpy.geterr(), lambda errors: numpy.seterr(**errors)), (_limits(), _set_limits), (_handlers(), _set_handlers),
        (_timer(), _set_timer), ([dict(hooks) for hooks in _hooks()], _set_hooks),
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


def _umask() -> int:
    """To read it is to set it: for that moment to the strictest, in case another thread makes a file."""
    before = os.umask(0o777)
    os.umask(before)
    return before


def _set_collector(on: bool) -> None:
    (gc.enable if on else gc.disable)()


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # drops what Python remembers of the filters as well
    warnings.filters[:] = filters  # type: ignore[index]


def _limits() -> dict[int, tuple[int, int]]:
    return {limit: resource.getrlimit(limit) for limit in LIMITS}


def _set_limits(limits: dict[int, tuple[int, int]]) -> None:
    for limit, (soft, hard) in limits.items():
        with contextlib.suppress(OSError, ValueError):  # a hard limit, once lowered, stays so
            resource.setrlimit(limit, (soft, hard))


def _handlers() -> dict[int, Any]:
    """Those set from Python; only its main thread can set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in signal.valid_signals() if signal.getsignal(number) is not None}


def _set_handlers(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _timer() -> tuple[float, float] | None:
    """When the alarm goes off, on the monotonic clock, and its interval; None if there is none."""
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    return (time.monotonic() + left, interval) if left else None


def _set_timer(timer: tuple[float, float] | None) -> None:
    if timer is None:
        signal.setitimer(signal.ITIMER_REAL, 0)
    else:
        signal.setitimer(signal.ITIMER_REAL, max(1e-6, timer[0] - time.monotonic()), timer[1])


def _hooks() -> list[dict[Any, Any]]:
    """torch's hooks on every module there is."""
    return [value for name, value in vars(modules).items() if name.startswith("_global_") and isinstance(value, dict)]


def _set_hooks(before: list[dict[Any, Any]]) -> None:
    for hooks, content in zip(_hooks(), before, strict=True):
        hooks.clear()
        hooks.update(content)
