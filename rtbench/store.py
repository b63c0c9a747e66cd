"""The store: one folder per finished stage, written aside and renamed into place. The folders are the truth.

    STORE/schema.json                     the layout's version
    STORE/results/KEY/record.json         values, canonical JSON with its own digest and those of the files beside it
    STORE/results/KEY/provenance.json     host, versions, times: what may differ from run to run
    STORE/results/KEY/*.safetensors       state (weights, buffers, masks), state.NAME (kept snapshots), samples
    STORE/results/KEY.failed/reason.json  why it failed; tried again at the next run
    STORE/partial/KEY/                    where an interrupted stage continues, and its lock
    STORE/index.sqlite                    derived, rebuilt from the folders at will
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rtbench import keys
from rtbench.errors import StoreError, UserError

SCHEMA = 1


class Lost(Exception):
    """A result, or a file of it, that has to be made again; `key` is its stage."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class Corrupt(Lost):
    """A file of a result does not hold what its record says."""


class Missing(Lost):
    """There is no such result, or its weights were dropped to save disk, or never kept under that name."""


class Store:
    """A store folder. Opening creates it unless `create` is False; UserError where that is impossible."""

    def __init__(self, path: Path | str, create: bool = True) -> None:
        self.path = Path(path)
        self.results, self.partial = self.path / "results", self.path / "partial"
        if not (self.path / "schema.json").is_file():
            self._create(create)
        self._upgrade()

    def _create(self, create: bool) -> None:
        if not create:
            raise UserError(f'no store at "{self.path}"')
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f'store "{self.path}" is a file, not a folder')
        if self.path.is_dir() and any(self.path.iterdir()) and not self.results.is_dir():
            raise UserError(f'"{self.path}" is neither empty nor a store; name another folder with --store')
        with explained(self.path):
            self.results.mkdir(parents=True, exist_ok=True)
            self.partial.mkdir(exist_ok=True)
            write_aside(self.path / "schema.json", keys.canonical({"schema": SCHEMA}).encode())

    def _upgrade(self) -> None:
        try:
            schema = json.loads((self.path / "schema.json").read_text())["schema"]
        except (ValueError, KeyError, TypeError):
            # The folders are self-describing, so a damaged header costs nothing: it is written anew.
            with explained(self.path):
                write_aside(self.path / "schema.json", keys.canonical({"schema": SCHEMA}).encode())
            return
        if schema > SCHEMA:
            raise UserError(f'store "{self.path}" has layout {schema}, this rtbench reads up to {SCHEMA}; use a newer rtbench')
        for step in range(schema, SCHEMA):
            with explained(self.path):
                UPGRADES[step](self)
                write_aside(self.path / "schema.json", keys.canonical({"schema": step + 1}).encode())

    def writable(self) -> None:
        """UserError unless results can be written here."""
        with explained(self.path):
            self.results.mkdir(exist_ok=True)
            self.partial.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.partial):
                pass

    def folder(self, key: str) -> Path:
        return self.results / key

    def keys(self) -> list[str]:
        """Keys of all finished stages, whether their folders are sound or not."""
        return sorted(entry.name for entry in os.scandir(self.results) if "." not in entry.name) if self.results.is_dir() else []

    def has(self, key: str) -> bool:
        return (self.results / key / "record.json").is_file()

    def record(self, key: str) -> dict[str, Any]:
        """The record of a finished stage; Corrupt if it is not what was written, Missing if there is none."""
        try:
            text = (self.results / key / "record.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(key, f"there is no result {key}") from None
        try:
            record = json.loads(text)
            digest = record.pop("digest")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise Corrupt(key, f"record.json of {key} is damaged") from error
        if digest != keys.digest(keys.canonical(record).encode()) or keys.key(record["stage"]) != key:
            raise Corrupt(key, f"record.json of {key} does not match its digest")
        return dict(record)

    def provenance(self, key: str) -> dict[str, Any]:
        """How and where a stage ran; empty if that file is damaged or lost, since no number depends on it."""
        try:
            found = json.loads((self.results / key / "provenance.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def has_state(self, ref: str) -> bool:
        return self._state_file(ref).is_file()

    def _state_file(self, ref: str) -> Path:
        key, _, name = ref.partition("/")
        return self.results / key / (f"state.{name}.safetensors" if name else "state.safetensors")

    def state_bytes(self, ref: str) -> bytes:
        """The safetensors bytes of "key" or "key/snapshot", checked against the record; Missing or Corrupt."""
        file = self._state_file(ref)
        files = self.record(ref.split("/")[0])["files"]
        if file.name not in files:
            raise Missing(ref.split("/")[0], f'stage {ref.split("/")[0]} kept no state "{ref.partition("/")[2]}"')
        return self._checked(file, files[file.name])

    def samples_bytes(self, key: str) -> bytes:
        """The safetensors bytes of a probe's per-sample tensors, checked against the record; Missing or Corrupt."""
        files = self.record(key)["files"]
        if "samples.safetensors" not in files:
            raise Missing(key, f"stage {key} has no samples")
        return self._checked(self.folder(key) / "samples.safetensors", files["samples.safetensors"])

    def _checked(self, file: Path, digest: str) -> bytes:
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise Missing(file.parent.name, f"{file.parent.name}/{file.name} was dropped") from None
        if keys.digest(content) != digest:
            raise Corrupt(file.parent.name, f"{file.parent.name}/{file.name} does not match its record")
        return content

    def put(self, key: str, record: dict[str, Any], provenance: dict[str, Any], files: dict[str, bytes]) -> None:
        """Makes a finished stage visible, whole or not at all. A result already there wins, unless it lost its state."""
        record = {**record, "files": {name: keys.digest(content) for name, content in sorted(files.items())}}
        record["digest"] = keys.digest(keys.canonical(record).encode())
        with explained(self.path):
            aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self.partial))
            try:
                for name, content in files.items():
                    write(aside / name, content)
                write(aside / "provenance.json", json.dumps(provenance, indent=1, sort_keys=True).encode())
                write(aside / "record.json", keys.canonical(record).encode())
                self._place(key, aside)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(self.results / f"{key}.failed", ignore_errors=True)

    def check(self, key: str, name: str) -> None:
        """Corrupt unless this file of a result is as recorded, or was dropped."""
        if (self.folder(key) / name).exists():
            self._checked(self.folder(key) / name, self.record(key)["files"][name])

    def adopt(self, key: str, folder: Path) -> None:
        """Copies a finished result from another store, as `put` would have written it."""
        with explained(self.path):
            aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self.partial))
            try:
                for file in folder.iterdir():
                    write(aside / file.name, file.read_bytes())
                self._place(key, aside)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def _place(self, key: str, aside: Path) -> None:
        aside.chmod(0o755)
        try:
            os.rename(aside, self.folder(key))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._restore(key, aside)
        sync_folder(self.results)

    def _restore(self, key: str, aside: Path) -> None:
        """The name is taken: gives a result that lost its state that state back; one that is now different replaces it."""
        try:
            same = self.record(key) == {k: v for k, v in json.loads((aside / "record.json").read_bytes()).items() if k != "digest"}
        except Lost:
            same = False
        if same:
            for file in aside.glob("*.safetensors"):
                if not (self.folder(key) / file.name).exists():
                    os.replace(file, self.folder(key) / file.name)
        elif not self._complete(key):
            self.set_aside(key, "superseded")
            with contextlib.suppress(OSError):
                os.rename(aside, self.folder(key))

    def _complete(self, key: str) -> bool:
        try:
            return all((self.folder(key) / name).is_file() for name in self.record(key)["files"])
        except Lost:
            return False

    def set_aside(self, key: str, why: str) -> Path:
        """Moves a folder out of the way, nothing deleted; returns where it went."""
        number = 1
        while (self.results / f"{key}.{why}-{number}").exists():
            number += 1
        target = self.results / f"{key}.{why}-{number}"
        with explained(self.path), contextlib.suppress(FileNotFoundError):
            os.rename(self.folder(key), target)
        return target

    def drop_state(self, key: str) -> int:
        """Deletes the weights of a stage, never its record; returns the bytes freed."""
        freed = 0
        for file in self.folder(key).glob("state*.safetensors"):
            freed += file.stat().st_size
            file.unlink(missing_ok=True)
        return freed

    def put_failure(self, key: str, reason: str, traceback: str) -> None:
        """Keeps why a stage failed. Best effort: a full disk must not hide the failure itself."""
        folder = self.results / f"{key}.failed"
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            write_aside(folder / "reason.json", json.dumps({"reason": reason, "traceback": traceback}, indent=1).encode())

    def failure(self, key: str) -> str | None:
        """Why the stage failed at its last try, if it did."""
        try:
            return str(json.loads((self.results / f"{key}.failed" / "reason.json").read_bytes())["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear_failure(self, key: str) -> None:
        shutil.rmtree(self.results / f"{key}.failed", ignore_errors=True)

    def work(self, key: str) -> Path:
        """The folder where an unfinished stage keeps what it needs to continue."""
        folder = self.partial / key
        with explained(self.path):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Yields whether this process may run the stage; another one that runs it now holds the claim, a dead one does not.

        Correctness never rests on this: two runs of one stage end in the same folder, and the second is discarded.
        """
        with explained(self.path):
            handle = os.open(self.partial / f"{key}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            for leftover in self.partial.glob(f"{key}.*/"):  # written aside by a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            yield True
            if self.has(key):
                shutil.rmtree(self.partial / key, ignore_errors=True)
                (self.partial / f"{key}.lock").unlink(missing_ok=True)
        finally:
            os.close(handle)


UPGRADES: dict[int, Any] = {}
"""From layout n to n + 1, in place: n -> function(store)."""


def write(path: Path, content: bytes) -> None:
    """Writes and fsyncs; the caller renames the folder."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_aside(path: Path, content: bytes) -> None:
    """Replaces a file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside, content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a full disk or a read-only store into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f'the disk of store "{path}" is full; finished stages are safe, free some space and run again') from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreError(f'store "{path}" cannot be written ({error.strerror}); name another one with --store') from error
        raise
