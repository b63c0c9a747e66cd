"""Loop: a `for` that survives a kill. Between items, at most every few seconds, it saves all that the rest of the stage depends on."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rtbench import keys
from rtbench.masks import Masks
from rtbench.store import write_aside

T = TypeVar("T")
SECONDS = 10.0
"""At most this much work is lost by a kill."""


class OutOfBudget(Exception):
    """The time for this run is up; the stage is saved and continues at the next run."""


class Loop:
    """Given to trainers, pruners and probes. Call it with the items, and with `state`: what else must survive.

    `state` holds tensors, lists, dicts, and objects with state_dict and load_state_dict; they are restored in place. Model, masks,
    generators, logs and kept states are saved anyhow. Loops that follow each other are counted: finished ones yield nothing again.
    """

    def __init__(
        self, model: nn.Module | None = None, masks: Masks | None = None, rng: torch.Generator | None = None, file: Path | None = None,
        seconds: float = SECONDS, progress: Callable[[int, int], None] | None = None, deadline: float | None = None,
        counts: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.masks, self.rng, self.file = model, masks if masks is not None else {}, rng, file
        self.seconds, self.progress, self.deadline = seconds, progress, deadline
        self.counts = counts if counts is not None else {}
        self.records: list[list[Any]] = []
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.spent = 0.0
        """Seconds of earlier tries of this stage, whose work was not lost."""
        self._started = self._saved_at = self._shown_at = time.monotonic()
        self._number = 0
        self._found = _read(file) if file is not None else None

    def __call__(self, items: Sequence[T], state: dict[str, Any] | None = None) -> Iterator[T]:
        number, state = self._number, state or {}
        self._number += 1
        first = 0
        if self._found is not None:
            if number < self._found["number"]:
                return  # an earlier loop of this stage, finished before the kill
            first = self._resume(state)
        for i in range(first, len(items)):
            yield items[i]
            self._border(number, i + 1, len(items), state)

    def log(self, step: int, name: str, value: float | None) -> None:
        """Adds one number to the stage's record."""
        self.records.append([step, name, value])

    def keep(self, name: str, state: dict[str, Tensor] | None = None) -> None:
        """Keeps another state of the stage, the model's by default, which later stages name as key/name."""
        source = state if state is not None else {} if self.model is None else self.model.state_dict()
        self.kept[name] = {key: value.detach().clone() for key, value in source.items()}

    def _border(self, number: int, done: int, total: int, state: dict[str, Any]) -> None:
        now = time.monotonic()
        late = self.deadline is not None and now > self.deadline
        if self.progress is not None and now - self._shown_at > 0.2:
            self._shown_at = now
            self.progress(done, total)
        if self.file is not None and (now - self._saved_at > self.seconds or (late and done < total)):
            self._save(number, done, state)
            self._saved_at = time.monotonic()
        if late and done < total:
            raise OutOfBudget

    def _save(self, number: int, done: int, state: dict[str, Any]) -> None:
        assert self.file is not None
        content = {
            "number": number, "done": done, "state": {name: _pack(value) for name, value in state.items()},
            "model": self.model.state_dict() if self.model is not None else {}, "masks": self.masks,
            "rng": self.rng.get_state() if self.rng is not None else None, "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "records": self.records, "kept": self.kept, "counts": dict(self.counts),
            "spent": self.spent + time.monotonic() - self._started,
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(content, buffer)
        payload = buffer.getvalue()
        write_aside(self.file, bytes.fromhex(keys.digest(payload)) + payload)

    def _resume(self, state: dict[str, Any]) -> int:
        found, self._found = self._found, None
        assert found is not None
        if self.model is not None:
            self.model.load_state_dict(found["model"])
        for name, mask in found["masks"].items():
            self.masks[name] = mask.to(self.masks[name].device) if name in self.masks else mask
        if self.rng is not None:
            self.rng.set_state(found["rng"])
        torch.set_rng_state(found["torch"])
        if found["cuda"]:
            torch.cuda.set_rng_state_all(found["cuda"])
        self.records[:], self.kept, self.spent = found["records"], found["kept"], found["spent"]
        self.counts.update(found["counts"])
        for name, value in state.items():
            _unpack(value, found["state"][name])
        return int(found["done"])


def _read(file: Path) -> dict[str, Any] | None:
    """What was saved, or None where nothing was, or not whole: then the stage starts over."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if keys.digest(content[32:]) != content[:32].hex():
        return None
    found: dict[str, Any] = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    return found


def _pack(value: Any) -> Any:
    return value.state_dict() if hasattr(value, "state_dict") else value


def _unpack(target: Any, saved: Any) -> None:
    if hasattr(target, "load_state_dict"):
        target.load_state_dict(saved)
    elif isinstance(target, Tensor):
        target.data.copy_(saved)
    elif isinstance(target, dict):
        target.clear()
        target.update(saved)
    elif isinstance(target, list):
        target[:] = saved
    else:
        raise TypeError(f"loop state of type {type(target).__name__} cannot be restored in place; use a tensor, list, dict or module")
