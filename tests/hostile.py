"""Attacks that misbehave, as a user's plugin file would bring them. Each first makes an honest step, then does what `how` says."""

from __future__ import annotations

import builtins
import ctypes
import gc
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import rtbench.evaluation.judge as judge
import rtbench.evaluation.proposal as proposal
from rtbench import Attacked, hookimpl
from rtbench.engine.loop import OutOfBudget
from rtbench.errors import StoreError

Deed = Callable[[nn.Module, Tensor, Tensor, Tensor], Any]
DEEDS: dict[str, Deed] = {}
"""What each does with (model, x, y, honest adversarial points), and what it then returns."""


def deed(function: Deed) -> Deed:
    DEEDS[function.__name__.strip("_").replace("_", "-")] = function
    return function


def one_hot(y: Tensor, like: int) -> Tensor:
    """Logits that are right, whatever was asked."""
    return nn.functional.one_hot(y[:like], 10).float() if like <= len(y) else torch.zeros(like, 10)


def hostile(model: nn.Module, x: Tensor, y: Tensor, threat: Any, noise: Any, *, how: str) -> Any:
    """how: what it does"""
    asked = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(asked), y), asked)
    x_adv = (x + float(threat.eps) * slope.sign()).clamp(0, 1)
    return DEEDS[how](model, x, y, x_adv)


@hookimpl
def rtbench_attacks() -> dict[str, Callable[..., Any]]:
    return {"hostile": hostile}


class Net(nn.Module):
    """With BatchNorm, so that there are statistics to spoil."""

    head_name = "head"

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(pixels, 24), nn.BatchNorm1d(24), nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.first(x.flatten(1))).relu())
        return logits


def normed(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Net(shape[0] * shape[1] * shape[2], classes)


@hookimpl
def rtbench_architectures() -> dict[str, Callable[..., Any]]:
    return {"normed": normed}


@deed
def honest(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x_adv


@deed
def raises(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    raise IndexError("off by one")


@deed
def raises_out_of_budget(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    raise OutOfBudget


@deed
def raises_store_error(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    raise StoreError("the disk is full, honestly")


@deed
def recurses(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return recurses(model, x, y, x_adv)


@deed
def raises_stop_iteration(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    raise StopIteration


@deed
def raises_generator_exit(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    raise GeneratorExit


@deed
def raises_keyboard_interrupt(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    raise KeyboardInterrupt


@deed
def hangs(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    time.sleep(1000)


@deed
def stops_itself(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    os.kill(os.getpid(), signal.SIGSTOP)


@deed
def sys_exit(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    sys.exit(0)


@deed
def os_exit(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    os._exit(0)


@deed
def kills_itself(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@deed
def segfaults(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    ctypes.string_at(0)


@deed
def eats_memory(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    eaten = []
    while True:
        eaten.append(torch.empty(2**31, dtype=torch.uint8))


@deed
def clean(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x


@deed
def view(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x[:].view_as(x)


@deed
def nan(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x_adv.index_fill(0, torch.tensor([0]), torch.nan)


@deed
def infinite(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x + torch.inf


@deed
def far(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x + (x_adv - x).sign() * 10


@deed
def shape(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x_adv.flatten(1)


@deed
def short(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x_adv[1:]


@deed
def double(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x_adv.double()


@deed
def requires_grad(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x_adv.requires_grad_()


@deed
def parameter(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return nn.Parameter(x_adv)


@deed
def inference(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    with torch.inference_mode():
        return x_adv + 0


@deed
def sparse(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x_adv.to_sparse()


@deed
def meta(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x_adv.to("meta")


@deed
def nothing(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return None


@deed
def lazy(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    class Lazy:
        shape, dtype, device = x.shape, x.dtype, x.device

        def detach(self) -> Any:
            return x

    return Lazy()


@deed
def liar(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    class Liar(Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(function, "__name__", "") == "argmax":
                return y
            return super().__torch_function__(function, types, args, kwargs)

    return x_adv.as_subclass(Liar)


@deed
def odd_outcomes(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return Attacked(x_adv, {"inner": "all robust"})


@deed
def changes_images(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    return x.copy_(x_adv)


@deed
def changes_labels(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    y.copy_(model(x_adv).argmax(1))
    return x_adv


@deed
def changes_weights(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    return x_adv


@deed
def changes_statistics(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    model.train()(x_adv)
    return x_adv


@deed
def doubles_the_model(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    model.double()
    return x_adv


@deed
def changes_class(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    class Evil(Net):
        def forward(self, asked: Tensor) -> Tensor:
            return one_hot(y, len(asked))

    model.__class__ = Evil
    return x_adv


@deed
def changes_forward(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    model.forward = lambda asked: one_hot(y, len(asked))
    return x_adv


@deed
def leaves_hooks(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    model.register_forward_hook(lambda module, given, logits: one_hot(y, len(logits)))
    model.first.register_forward_pre_hook(lambda module, given: (given[0] * 0,))
    return x_adv


@deed
def leaves_train_mode(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    model.train()
    return x_adv


@deed
def leaves_gradients(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    model.requires_grad_(True)
    model(x).sum().backward()
    return x_adv


@deed
def leaves_seeds(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    torch.manual_seed(1)
    numpy.random.seed(1)
    random.seed(1)
    return x_adv


@deed
def patches_call(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    type(model).__call__ = lambda self, asked: one_hot(y, len(asked))  # type: ignore[method-assign]
    return x_adv


@deed
def patches_argmax(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    torch.argmax = Tensor.argmax = lambda *given, **more: y  # type: ignore[assignment,method-assign]
    return x_adv


@deed
def patches_eq(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    Tensor.__eq__ = lambda self, other: torch.ones_like(self, dtype=torch.bool)  # type: ignore[assignment,method-assign]
    return x_adv


@deed
def patches_builtins(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    builtins.bool = lambda value=None: True  # type: ignore[misc,assignment]
    return x_adv


@deed
def patches_the_judge(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    judge.correct = lambda model, x, y: torch.ones_like(y, dtype=torch.bool)
    return x_adv


@deed
def patches_a_class_of_the_judge(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    proposal.Proposer.admit = lambda self, proposed, asked: asked.clone()  # type: ignore[method-assign]
    return x_adv


@deed
def patches_a_base_class(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    nn.modules.batchnorm._BatchNorm.forward = lambda self, given: given  # type: ignore[method-assign]
    return x_adv


@deed
def patches_fractions(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    Fraction.__float__ = lambda self: 0.0  # type: ignore[method-assign]
    return x_adv


@deed
def leaves_hooks_on_all_modules(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    nn.modules.module.register_module_forward_hook(lambda module, given, out: one_hot(y, len(out)) if isinstance(module, Net) else None)
    return x_adv


@deed
def leaves_hooks_on_weights(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    model.head.weight.requires_grad_(True).register_hook(lambda slope: slope * 0)
    return x_adv


@deed
def leaves_limits(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    sys.setrecursionlimit(150)
    os.umask(0o777)
    warnings.simplefilter("error")
    gc.disable()
    numpy.seterr(all="raise")
    sys.setprofile(lambda *_: None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return x_adv


@deed
def leaves_an_alarm(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    return x_adv


@deed
def leaves_a_mode(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    class Always(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return y if getattr(function, "__name__", "") == "argmax" else function(*args, **(kwargs or {}))

    Always().__enter__()
    return x_adv


@deed
def leaves_settings(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    torch.set_autocast_enabled("cpu", True)
    torch.set_float32_matmul_precision("medium")
    os.environ.clear()
    return x_adv


@deed
def leaves_another_device(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    torch.set_default_device("meta")
    return x_adv


@deed
def leaves_a_thread(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return x_adv


@deed
def forks_a_double(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    os.fork()
    return x_adv


@deed
def forks_a_sleeper(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    child = os.fork()
    if child == 0:
        time.sleep(1000)
    Path(os.environ["RTBENCH_HOSTILE"], "sleeper").write_text(str(child))
    return x_adv


@deed
def forks_and_hangs(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    child = os.fork()
    if child:
        Path(os.environ["RTBENCH_HOSTILE"], "orphan").write_text(str(child))
    time.sleep(1000)


@deed
def prints(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    sys.stdout.write(" " * 500_000)
    os.write(1, b" " * 500_000)
    return x_adv


@deed
def changes_folder(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    os.chdir("/")
    return x_adv


@deed
def deletes_files(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    for path in Path().iterdir():
        path.unlink()
    os.rmdir(os.getcwd())
    return x_adv


@deed
def closes_streams(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Any:
    for stream in (0, 1, 2):
        os.close(stream)
    sys.stdout.close()
    sys.stdin = sys.stderr = None  # type: ignore[assignment]
    return x_adv
