"""What a loop saves of a stage: when, in which form, and how it is read again."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtbench import keys
from rtbench.storage.disk import leftovers

LOADABLE = "loop state may hold tensors, numbers, texts, lists and dicts of these, and nothing else"


class Pace:
    """When to save: at the first border after so many seconds; shared by the loops of networks that are trained as one, at the same one."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.at, self._due = seconds, time.monotonic(), -1

    def due(self, done: int, now: float) -> bool:
        """Whether to save after `done` items. at: when it last was."""
        if now - self.at > self.seconds:
            self._due = done
        return done == self._due


def read(file: Path) -> list[bytes]:
    """What was saved, or nothing where nothing was, or not whole: then the stage starts over."""
    for leftover in leftovers(file):
        leftover.unlink(missing_ok=True)
    try:
        content = file.read_bytes()
    except OSError:
        return []
    if keys.digest(content[32:]) != content[:32].hex():
        return []
    parts, at = list[bytes](), 32
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "big")
        parts.append(content[at + 8 : at + 8 + size])
        at += 8 + size
    return parts


def parse(snapshot: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(io.BytesIO(snapshot), map_location="cpu", weights_only=True)
    except Exception as error:
        raise TypeError(f"{LOADABLE}: {error}") from error
    return found


def check(state: dict[str, Any]) -> None:
    for name, value in state.items():
        if not isinstance(value, Tensor | dict | list) and not hasattr(value, "load_state_dict"):
            kind = type(value).__name__
            raise TypeError(f'loop state "{name}" of type {kind} cannot be restored in place; use a tensor, list, dict or module')


def own(value: Any) -> Any:
    """Without what lies beside a tensor in memory, which would be saved with it: of networks trained as one, all the others."""
    if isinstance(value, Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, dict):
        made = {name: own(inner) for name, inner in value.items()}
        return made if any(made[name] is not inner for name, inner in value.items()) else value
    return [own(inner) for inner in value] if isinstance(value, list) else value


def pack(value: Any) -> Any:
    return value.state_dict() if hasattr(value, "state_dict") else value


def unpack(target: Any, saved: Any) -> None:
    if hasattr(target, "load_state_dict"):
        target.load_state_dict(saved)
    elif isinstance(target, Tensor):
        target.data.copy_(saved)
    elif isinstance(target, dict):
        target.clear()
        target.update(saved)
    else:
        target[:] = saved
