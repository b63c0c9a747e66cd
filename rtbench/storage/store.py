"""The store: one folder per finished stage (see `results`), written aside and renamed into place. The folders are the truth.

STORE/schema.json                     the layout's version
STORE/results/                        what is finished
STORE/partial/KEY/                    where an interrupted stage continues
STORE/partial/KEY.lock                held by the process that runs the stage
STORE/index.sqlite                    derived, rebuilt from the folders at will
STORE/accepted.json                   edits of parts that change no result, see `accepted`
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rtbench import keys
from rtbench.errors import StoreError, UserError
from rtbench.storage.disk import explained as explained
from rtbench.storage.disk import sync_folder, try_lock, write
from rtbench.storage.disk import write_aside as write_aside
from rtbench.storage.results import PROVENANCE, RECORD, Lost, Results, sign

SCHEMA = 1


class Store(Results):
    """A store folder. Opening creates it unless `create` is False; UserError where that is impossible."""

    def __init__(self, path: Path | str, create: bool = True) -> None:
        super().__init__(path)
        self.partial = self.path / "partial"
        if not (self.path / "schema.json").exists() and not self.finished():
            self._create(create)
        self._upgrade(create)

    def _create(self, create: bool) -> None:
        if not create:
            raise UserError(f'no store at "{self.path}"; name the folder of another, on the command line with --store')
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f'store "{self.path}" is a file, not a folder')
        with explained(self.path):
            names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
            # Another process may be creating it at this moment.
            if names - {"results", "partial"} and not any("schema.json" in name for name in names):
                raise UserError(f'"{self.path}" is neither empty nor a store; name another folder with --store')
            self.results.mkdir(parents=True, exist_ok=True)
            self.partial.mkdir(exist_ok=True)

    def _upgrade(self, write: bool) -> None:
        try:
            schema = json.loads((self.path / "schema.json").read_bytes())["schema"]
            if type(schema) is not int or schema < 1:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            # The folders are self-describing, so a lost or damaged header costs nothing: it is written anew, if that is possible.
            with contextlib.suppress(StoreError):
                if write:
                    self._stamp(SCHEMA)
            return
        if schema > SCHEMA:
            raise UserError(f'store "{self.path}" has layout {schema}, this rtbench reads up to {SCHEMA}; use a newer rtbench')
        for step in range(schema, SCHEMA):
            with explained(self.path):
                UPGRADES[step](self)
            self._stamp(step + 1)

    def _stamp(self, schema: int) -> None:
        with explained(self.path):
            write_aside(self.path / "schema.json", keys.canonical({"schema": schema}).encode())

    def writable(self) -> None:
        """StoreError unless results can be written here."""
        with explained(self.path):
            for folder in (self.results, self.partial):
                folder.mkdir(exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass

    def put(self, key: str, record: dict[str, Any], provenance: dict[str, Any], files: dict[str, bytes]) -> None:
        """Makes a finished stage visible, whole or not at all. A sound result already there wins, and gets back what it lost."""
        contents = dict(sorted(files.items()))
        contents[PROVENANCE] = json.dumps(sign({**provenance, "stage": key}), indent=1, sort_keys=True).encode()
        self._write(key, {**contents, RECORD: _signed(record, files)})
        self.clear_failure(key)

    def replace(self, key: str, record: dict[str, Any], files: dict[str, bytes]) -> None:
        """Gives a finished stage other files and the record that names them; a reader in between makes sure or looks again."""
        with explained(self.path):
            for name, content in files.items():
                write_aside(self.folder(key) / name, content)
            write_aside(self.folder(key) / RECORD, _signed(record, files))
            sync_folder(self.folder(key))
        self.clear_failure(key)

    def adopt(self, key: str, source: Results) -> None:
        """Copies a finished result of another store, as `put` would have written it."""
        names = [RECORD, PROVENANCE, *source.record(key)["files"]]
        with explained(self.path):
            there = {name: source.folder(key) / name for name in names if (source.folder(key) / name).is_file()}
            contents = {name: path.read_bytes() for name, path in there.items()}
        self._write(key, contents)
        self.clear_failure(key)

    def _write(self, key: str, contents: dict[str, bytes]) -> None:
        with explained(self.path):
            aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self.partial))
            try:
                for name, content in contents.items():
                    write(aside / name, content)
                aside.chmod(0o755)
                sync_folder(aside)
                self._place(key, aside)
                sync_folder(self.results)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def _place(self, key: str, aside: Path) -> None:
        while True:
            try:
                os.rename(aside, self.folder(key))
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            if self._restored(key, aside):
                return
            self.set_aside(key, "superseded")

    def _restored(self, key: str, aside: Path) -> bool:
        """Whether the result already there may stay: whole, or the same as the new one, whose files then replace lost ones."""
        try:
            there = self.record(key)
        except Lost:
            return False
        if keys.canonical(sign(there)).encode() == (aside / RECORD).read_bytes():
            for name in there["files"]:
                if (aside / name).is_file() and not self._holds(key, name, there):
                    os.replace(aside / name, self.folder(key) / name)
            return True
        return self.complete(key)

    def _holds(self, key: str, name: str, record: dict[str, Any]) -> bool:
        try:
            self._checked(self.folder(key) / name, record["files"][name])
        except Lost:
            return False
        return True

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
        with explained(self.path):
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

    def clear_failure(self, key: str) -> None:
        shutil.rmtree(self.results / f"{key}.failed", ignore_errors=True)

    def work(self, key: str) -> Path:
        """The folder where an unfinished stage keeps what it needs to continue."""
        folder = self.partial / key
        with explained(self.path):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def forget_work(self, key: str) -> None:
        """The stage starts over at its next try."""
        shutil.rmtree(self.partial / key, ignore_errors=True)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Yields whether this process may run the stage; another one that runs it now holds the claim, a dead one does not.

        Correctness never rests on this: two runs of one stage end in the same folder, and the second is discarded.
        """
        lock = self.partial / f"{key}.lock"
        with explained(self.path):
            handle = try_lock(lock)
        if handle is None:
            yield False
            return
        try:
            for leftover in self.partial.glob(f"{key}.*/"):  # written aside by a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            yield True
            if self.complete(key):
                self.forget_work(key)
                lock.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _signed(record: dict[str, Any], files: dict[str, bytes]) -> bytes:
    """The text of a record that vouches for these files."""
    contents = dict(sorted(files.items()))
    digests = {name: keys.digest(content) for name, content in contents.items()}
    return keys.canonical(sign({**record, "files": digests, "sizes": {name: len(content) for name, content in contents.items()}})).encode()


UPGRADES: dict[int, Callable[[Store], None]] = {}
"""From layout n to n + 1, in place: n -> function(store)."""
