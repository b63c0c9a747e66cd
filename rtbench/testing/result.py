"""What a check says, and how it is run: on its own randomness, with torch's global settings guarded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from rtbench.evaluation.guard import own_randomness


class Result(NamedTuple):
    """One line of `rtbench check`. text: what was checked. reason: why it is not ok, or was skipped; a skipped check is ok."""

    kind: str
    name: str
    text: str
    ok: bool
    reason: str = ""
    skipped: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.text}"


class Broken(Exception):
    """The part breaks its contract; the text says how."""


class Skip(Exception):
    """The check cannot be made here; the text says why."""


def need(condition: object, reason: str) -> None:
    """Broken with this reason unless the condition holds."""
    if not condition:
        raise Broken(reason)


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's gradient mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic mode": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "the working directory": (os.getcwd, os.chdir),
}


@contextlib.contextmanager
def sealed() -> Iterator[None]:
    """Seeds the global generators for the check and puts them back; Broken if a global setting was left changed, which is put back."""
    before = {name: read() for name, (read, _) in SETTINGS.items()}
    changed = []
    try:
        with own_randomness(0):
            yield
    finally:
        for name, (read, write) in SETTINGS.items():
            if read() != before[name]:
                changed.append(name)
                write(before[name])
    need(not changed, f"it leaves {' and '.join(changed)} changed")
