"""Loop: a `for` that survives a kill. Between items, at most every few seconds, it saves all that the rest of the stage depends on."""

from __future__ import annotations

import io
import pickle
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rtbench import keys
from rtbench.engine.saved import LOADABLE, Pace, check, own, pack, parse, read, unpack
from rtbench.evaluation.guard import randomness, set_randomness
from rtbench.parts.masks import Masks
from rtbench.storage.disk import explained, write_aside

T = TypeVar("T")
SECONDS = 10.0
"""At most this much work is lost by a kill."""


class OutOfBudget(BaseException):
    """The time for this run is up; the stage is saved and continues at the next run. No Exception, so that no part catches it."""


class Loop:
    """Given to trainers, pruners and probes. Call it with the items, and with `state`: what else must survive.

    `state` holds tensors, lists, dicts, and objects with state_dict and load_state_dict; they are restored in place. Model, masks,
    generators, logs and kept states are saved anyhow. Loops of a stage follow each other and do not nest. After a kill a finished one
    yields nothing again: all of this is put back as it was at its end, so that what stands between two loops runs again on the same.
    """

    def __init__(
        self, model: nn.Module | None = None, masks: Masks | None = None, rng: torch.Generator | None = None, file: Path | None = None,
        seconds: float = SECONDS, progress: Callable[[int, int], None] | None = None, deadline: float | None = None,
        counts: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.masks, self.rng, self.file = model, masks if masks is not None else {}, rng, file
        self.pace, self.progress, self.deadline = Pace(seconds), progress, deadline
        self.counts = counts if counts is not None else {}
        self.records: list[list[Any]] = []
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.spent = 0.0
        """Seconds of earlier tries of this stage, whose work was not lost."""
        self.share = 1.0
        """Of networks trained as one, one's share of the time that all take."""
        self._started = self._shown_at = time.monotonic()
        self._open = self._readable = False
        self._found = read(file) if file is not None else []
        """What was saved at the end of each finished loop, and in the one that was interrupted."""
        self._finished: list[bytes] = []

    def __call__(self, items: Sequence[T], state: dict[str, Any] | None = None) -> Iterator[T]:
        state = state or {}
        check(state)
        if self._open:
            raise RuntimeError("the loops of a stage follow each other; one inside another could not be continued after a kill")
        number, first = len(self._finished), 0
        if self._found:
            saved = self._found.pop(0)
            first = self._restore(saved, state)
            if self._found:  # another loop followed
                self._finished.append(saved)
                return
        self._open = True
        try:
            for i in range(first, len(items)):
                yield items[i]
                self._border(number, i + 1, len(items), state)
        except GeneratorExit:  # the part broke out of it
            self._finish(len(items), state)
            raise
        finally:
            self._open = False
        self._finish(len(items), state)

    def log(self, step: int, name: str, value: float | None) -> None:
        """Adds one number to the stage's record."""
        self.records.append([step, name, value])

    def keep(self, name: str, state: dict[str, Tensor] | None = None) -> None:
        """Keeps another state of the stage, the model's by default, which later stages name as key/name."""
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f'a kept state cannot be called "{name}": letters, digits, dots and dashes only')
        source = state if state is not None else {} if self.model is None else self.model.state_dict()
        self.kept[name] = {key: value.detach().clone() for key, value in source.items()}

    def taken(self) -> float:
        """The seconds that the stage took so far."""
        return self.spent + self.share * (time.monotonic() - self._started)

    def _border(self, number: int, done: int, total: int, state: dict[str, Any]) -> None:
        now = time.monotonic()
        late = self.deadline is not None and now > self.deadline
        if self.progress is not None and now - self._shown_at > 0.2:
            self._shown_at = now
            self.progress(done, total)
        if self.file is not None and (self.pace.due(done, now) or (late and done < total)):
            self._save(number, done, state)
            self.pace.at = time.monotonic()
        if late and done < total:
            raise OutOfBudget

    def _finish(self, total: int, state: dict[str, Any]) -> None:
        if self.file is not None:
            self._finished.append(self._snapshot(total, state))

    def _save(self, number: int, done: int, state: dict[str, Any]) -> None:
        assert self.file is not None
        snapshot = self._snapshot(done, state)
        if not self._readable:  # once is enough to know
            parse(snapshot)
            self._readable = True
        payload = b"".join(len(part).to_bytes(8, "big") + part for part in (*self._finished[:number], snapshot))
        with explained(self.file.parent.parent.parent):
            write_aside(self.file, bytes.fromhex(keys.digest(payload)) + payload)

    def _snapshot(self, done: int, state: dict[str, Any]) -> bytes:
        content = {
            "done": done, "state": {name: pack(value) for name, value in state.items()},
            "model": self.model.state_dict() if self.model is not None else {}, "masks": self.masks,
            "rng": self.rng.get_state() if self.rng is not None else None, "global": randomness(),
            "records": self.records, "kept": self.kept, "counts": dict(self.counts),
            "spent": self.taken(),
        }  # fmt: skip
        buffer = io.BytesIO()
        try:
            torch.save(own(content), buffer)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise TypeError(f"{LOADABLE}: {error}") from error
        return buffer.getvalue()

    def _restore(self, snapshot: bytes, state: dict[str, Any]) -> int:
        found = parse(snapshot)
        if self.model is not None:
            self.model.load_state_dict(found["model"])
        for name, mask in found["masks"].items():
            if name in self.masks:
                self.masks[name].copy_(mask)
            else:
                self.masks[name] = mask
        if self.rng is not None:
            self.rng.set_state(found["rng"])
        set_randomness(found["global"])
        self.records[:], self.kept, self.spent = found["records"], found["kept"], found["spent"]
        self.counts.update(found["counts"])
        for name, value in state.items():
            unpack(value, found["state"][name])
        return int(found["done"])
