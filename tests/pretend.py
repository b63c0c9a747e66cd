"""A pretend accelerator, "pretend:0": computes on the CPU, bit for bit as it does, and refuses what a GPU refuses.

RuntimeError where devices mix: only CPU numbers without dimensions, and CPU indices into its tensors, are let through, as CUDA does.
A generator of another device is refused, and `.numpy()`, by torch itself. `waits` counts what makes a program wait for its GPU.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.utils.backend_registration import _DummyBackendModule, _DummyPrivateUse1Hook, _setup_privateuseone_for_python_backend

NAME, aten = "pretend", torch.ops.aten
DEVICE = f"{NAME}:0"
ANY_DEVICE = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default, aten.is_nonzero.default,
    aten.unique_dim.default, aten._unique2.default, aten.repeat_interleave.Tensor, aten.bincount.default,
}  # fmt: skip
_counters: list[Counter[str]] = []


class Pretend(Tensor):
    """A tensor of the pretend device; `held` is the CPU tensor with its numbers, which it shares with its views."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretend:
        made: Pretend = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None: ...

    __torch_function__ = torch._C._disabled_torch_function_impl

    def _set_data(self, other: Pretend) -> None:
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held = other.held

    data = property(lambda self: Tensor.data.__get__(self), _set_data)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))

    def __reduce_ex__(self, protocol: Any) -> Any:  # as it is read again with map_location="cpu"
        return self.detach().cpu().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied._is_param = True  # type: ignore[attr-defined]
        return memo.setdefault(id(self), copied)

    def tolist(self) -> Any:  # torch's own refuses subclasses
        return self.detach().cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretend({self.held})"


@contextlib.contextmanager
def waits() -> Iterator[Counter[str]]:
    """Counts what a program would have waited for its GPU for meanwhile, as "operation file:line", of the last line of rtbench."""
    _counters.append(Counter())
    try:
        yield _counters[-1]
    finally:
        _counters.pop()


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation that has to do with the device."""
    tensors: list[Tensor] = []
    held_args = [_held(arg, tensors) for arg in args]
    held_kwargs = {name: _held(value, tensors) for name, value in kwargs.items()}
    given = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Pretend)}
    asked = kwargs.get("device")
    here = torch.device(asked).type == NAME if asked is not None else isinstance(args[0], Pretend) if op in ANY_DEVICE else bool(given)
    if op not in ANY_DEVICE and len(given) > 0:
        _refuse_mixed(op, args, tensors)
    if here:
        _refuse_generator((*args, *kwargs.values()))
    if _counters and given and _waits(op, args, here):
        _count(op)
    if asked is not None:
        held_kwargs["device"] = "cpu"
    return _outer(op(*held_args, **held_kwargs), given, here)


def _held(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.held if isinstance(value, Pretend) else value
    return [_held(each, tensors) for each in value] if isinstance(value, list | tuple) else value


def _outer(found: Any, given: dict[int, Pretend], here: bool) -> Any:
    """What an operation returns: tensors that it was given and wrote to are the same ones."""
    if isinstance(found, list | tuple):
        return type(found)(_outer(each, given, here) for each in found)
    if not isinstance(found, Tensor) or (id(found) not in given and not here):
        return found
    outer = given[id(found)] if id(found) in given else Pretend(found)
    assert outer.shape == found.shape, "an operation changed the size of a tensor"
    return outer


def _refuse_mixed(op: Any, args: Any, tensors: list[Tensor]) -> None:
    strange = [tensor for tensor in tensors if not isinstance(tensor, Pretend)]
    if strange and op in INDEXING and isinstance(args[0], Pretend):  # indices may be anywhere, values not
        strange = [tensor for tensor in strange if any(tensor is arg for arg in args[2:])]
    written = (
        [arg for arg, known in zip(args, op._schema.arguments, strict=False) if known.alias_info and known.alias_info.is_write]
        if strange
        else []
    )
    if any(tensor.dim() > 0 or any(tensor is arg for arg in written) for tensor in strange):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu in {op}")


def _refuse_generator(values: tuple[Any, ...]) -> None:
    for value in values:
        if isinstance(value, torch.Generator) and value.device.type != NAME:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{value.device.type}'")


def _waits(op: Any, args: Any, here: bool) -> bool:
    if op in ANY_DEVICE:
        return not here and isinstance(args[op is aten.copy_.default], Pretend)
    if op in INDEXING and any(isinstance(index, Pretend) and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
        return len(args) < 3 or args[2].dim() > 0  # a number is filled in without looking
    return op in WAITING


def _count(op: Any) -> None:
    frames = [frame for frame in traceback.extract_stack() if "/rtbench/" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "elsewhere"
    for counter in _counters:
        counter[f"{op._schema.name.removeprefix('aten::')} {place}"] += 1


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


def _here(backward: Any) -> Any:
    """Runs in the thread that calls it: there is no other for this device."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.set_multithreading_enabled(False):
            return backward(*args, **kwargs)

    return call


def _start() -> list[Library]:
    """Registers the device in this process, once; what it returns has to be kept."""
    torch.ones(1, requires_grad=True).sum().backward()  # before there is a device: a process with autograd's threads cannot fork
    torch.autograd._engine_run_backward = _here(torch.autograd._engine_run_backward)  # type: ignore[attr-defined]
    _setup_privateuseone_for_python_backend(NAME, _DummyBackendModule(), _DummyPrivateUse1Hook(), _Guard())  # type: ignore[no-untyped-call]
    every, own = Library("_", "IMPL"), Library("aten", "IMPL")
    every.fallback(_run, "PrivateUse1")
    for op in (aten.copy_.default, aten.arange.default, aten.arange.start, aten.arange.start_step):
        # torch.tensor copies where no fallback is found; torch.arange would change the size of an empty tensor.
        own.impl(op.name().removeprefix("aten::"), functools.partial(_run, op), "PrivateUse1")
    return [every, own]


LIBRARIES = _start()
