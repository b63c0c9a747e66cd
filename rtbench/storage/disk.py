"""Files written whole or not at all, and what the disk refuses told in one sentence."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from rtbench.errors import StoreError


def write(path: Path, content: bytes) -> None:
    """Writes and fsyncs; the caller renames the folder."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_aside(path: Path, content: bytes) -> None:
    """Replaces a file whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        write(aside, content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def writable(path: Path, option: str) -> None:
    """Tries a file that something long will be written to at its end; what the disk refuses is one sentence, StoreError."""
    with explained(path, option):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        aside.touch(exist_ok=False)
        aside.unlink()


def leftovers(path: Path) -> list[Path]:
    """What killed calls of `write_aside` for this file left behind."""
    return list(path.parent.glob(f".{path.name}.*"))


def sync_folder(path: Path) -> None:
    """Makes renames into this folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the exclusive lock on this file until it is closed, or its process dies; None if another holds it."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:
            pass  # whoever held it deleted it meanwhile: a lock on that file would exclude nobody
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            return handle  # a disk without locks excludes nobody
        os.close(handle)


@contextlib.contextmanager
def explained(path: Path, option: str = "--store") -> Iterator[None]:
    """Turns whatever the disk refuses into one sentence, StoreError; `option` is what the user may name another place with."""
    what = "store " if option == "--store" else ""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f'the disk of {what}"{path}" is full; finished stages are safe, free some space and run again') from error
        raise StoreError(f'{what}"{path}" cannot be written ({error.strerror or error}); name another one with {option}') from error
