"""The results of a store, for reading: one folder per finished stage, every byte checked against the record before it is believed.

STORE/results/KEY/record.json         values, canonical JSON with its own digest and those of the files beside it
STORE/results/KEY/provenance.json     host, versions, times: what may differ from run to run
STORE/results/KEY/*.safetensors       state (weights, buffers, masks), state.NAME (kept snapshots), samples, witness
STORE/results/KEY.failed/reason.json  why it failed; tried again at the next run
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from rtbench import keys
from rtbench.errors import UserError

RECORD, PROVENANCE, STATE, SAMPLES = "record.json", "provenance.json", "state.safetensors", "samples.safetensors"
WITNESS = "witness.safetensors"
SMALL = 2**18
"""Bytes that cost hardly more to read than to find."""
KEY = re.compile(r"[0-9a-f]{24}")
WORDS = {"stage", "records", "flags", "about", "passes", "files", "sizes"}


class Lost(UserError):
    """A result, or a file of it, that has to be made again; `key` is its stage."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class Corrupt(Lost):
    """A file of a result does not hold what its record says."""


class Missing(Lost):
    """There is no such result, or its weights were dropped to save disk, or never kept under that name."""


class Results:
    """The finished stages below `path`, by key."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.results = self.path / "results"

    def folder(self, key: str) -> Path:
        return self.results / key

    def finished(self) -> list[str]:
        """Keys of all finished stages, whether their folders are sound or not."""
        return sorted(name for name in os.listdir(self.results) if KEY.fullmatch(name)) if self.results.is_dir() else []

    def has(self, key: str) -> bool:
        return (self.results / key / RECORD).is_file()

    def record(self, key: str) -> dict[str, Any]:
        """The record of a finished stage; Corrupt if it is not what was written, Missing if there is none."""
        try:
            text = (self.results / key / RECORD).read_bytes()
        except FileNotFoundError:
            raise Missing(key, f"there is no result {key}") from None
        except OSError as error:
            raise Corrupt(key, f"{RECORD} of {key} cannot be read ({error.strerror})") from error
        record = signed(text)
        if record is None or not record.keys() >= WORDS or keys.key(record["stage"]) != key:
            raise Corrupt(key, f"{RECORD} of {key} is damaged")
        return record

    def provenance(self, key: str) -> dict[str, Any]:
        """How and where a stage ran; empty if that file is lost, damaged or of another stage, since no number depends on it."""
        try:
            found = signed((self.results / key / PROVENANCE).read_bytes())
        except OSError:
            return {}
        return found if found is not None and found.pop("stage", None) == key else {}

    def listing(self, key: str) -> dict[str, list[int]]:
        """Modification time in ns and size in bytes of the files that the record vouches for, itself included."""
        try:
            with os.scandir(self.results / key) as entries:
                stats = {entry.name: entry.stat() for entry in entries if entry.is_file() and entry.name != PROVENANCE}
        except OSError:
            return {}
        return {name: [stat.st_mtime_ns, stat.st_size] for name, stat in sorted(stats.items())}

    def verify(self, key: str, deep: bool = True) -> dict[str, Any]:
        """The record, if all of the result is as it was written; weights may have been dropped. Lost otherwise.

        deep: every file is read and its digest compared; without it, of those above SMALL only the size is.
        """
        record, there = self.record(key), self.listing(key)
        for name, digest in record["files"].items():
            path = self.folder(key) / name
            if name not in there:
                if path.exists() or not name.startswith("state."):
                    raise Corrupt(key, f"{key}/{name} is gone")
            elif there[name][1] != record["sizes"][name]:
                raise Corrupt(key, f"{key}/{name} has {there[name][1]} bytes instead of {record['sizes'][name]}")
            elif deep or there[name][1] <= SMALL:
                self._checked(path, digest)
        return record

    def sound(self, key: str) -> bool:
        """Whether `verify` finds nothing amiss."""
        try:
            self.verify(key)
        except Lost:
            return False
        return True

    def complete(self, key: str) -> bool:
        """Whether the stage is finished and every file that its record names is there, no weights dropped."""
        try:
            return all((self.folder(key) / name).is_file() for name in self.record(key)["files"])
        except Lost:
            return False

    def has_state(self, ref: str) -> bool:
        return self._state_file(ref).is_file()

    def _state_file(self, ref: str) -> Path:
        key, _, name = ref.partition("/")
        return self.results / key / (f"state.{name}.safetensors" if name else STATE)

    def state_bytes(self, ref: str) -> bytes:
        """The safetensors bytes of "key" or "key/snapshot", checked against the record; Missing or Corrupt."""
        return self._checked(self._state_file(ref), self.state_digest(ref))

    def state_digest(self, ref: str) -> str:
        """Their SHA-256, as the record has it; Missing if no such state was kept."""
        key, _, name = ref.partition("/")
        digest = self.record(key)["files"].get(self._state_file(ref).name)
        if digest is None:
            raise Missing(key, f'stage {key} kept no state "{name}"' if name else f"stage {key} has no weights")
        return str(digest)

    def samples_bytes(self, key: str) -> bytes:
        """The safetensors bytes of a probe's per-sample tensors, checked against the record; Missing or Corrupt."""
        return self._checked(self.folder(key) / SAMPLES, self.samples_digest(key))

    def samples_digest(self, key: str) -> str:
        """Their SHA-256, as the record has it; Missing if there are none."""
        return self._digest(key, SAMPLES)

    def witness_bytes(self, key: str) -> bytes:
        """The safetensors bytes of a probe's adversarial examples, likewise."""
        return self._checked(self.folder(key) / WITNESS, self._digest(key, WITNESS))

    def _digest(self, key: str, name: str) -> str:
        digest = self.record(key)["files"].get(name)
        if digest is None:
            raise Missing(key, f"stage {key} has no {name}")
        return str(digest)

    def _checked(self, file: Path, digest: str) -> bytes:
        key = file.parent.name
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise Missing(key, f"{key}/{file.name} was dropped") from None
        except OSError as error:
            raise Corrupt(key, f"{key}/{file.name} cannot be read ({error.strerror})") from error
        if keys.digest(content) != digest:
            raise Corrupt(key, f"{key}/{file.name} does not match its record")
        return content

    def failure(self, key: str) -> str | None:
        """Why the stage failed at its last try, if it did."""
        try:
            return str(json.loads((self.results / f"{key}.failed" / "reason.json").read_bytes())["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def sign(value: dict[str, Any]) -> dict[str, Any]:
    """The value with its own digest."""
    return {**value, "digest": keys.digest(keys.canonical(value).encode())}


def signed(text: bytes) -> dict[str, Any] | None:
    """The value that `sign` was given, from its JSON text; None if that is damaged."""
    try:
        value = dict(json.loads(text))
        return value if value.pop("digest") == keys.digest(keys.canonical(value).encode()) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
