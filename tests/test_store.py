"""The store: whole or not at all, on full and read-only disks, under locks, across layouts."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rtbench
import studies
from rtbench import keys
from rtbench.errors import StoreError, UserError
from rtbench.storage import disk, store
from rtbench.storage.results import Results
from rtbench.storage.store import Store
from studies import numbers, run, tree, write

DENSE: dict[str, Any] = {"only": {"recipe": ["dense"]}}
STAGE = {"verb": "init", "part": {}, "data": {}, "net": {}, "seed": 1, "inputs": {}}
KEY = keys.key(STAGE)
RECORD = {"stage": STAGE, "records": [[0, "", 0.5]], "flags": [], "about": {}, "passes": {"forwards": 1, "gradients": 0}}
FILES = {"state.safetensors": b"weights", "samples.safetensors": b"bits"}


def put(where: Store, value: float = 0.5, files: dict[str, bytes] | None = None, host: str = "here") -> None:
    where.put(KEY, {**RECORD, "records": [[0, "", value]]}, {"host": host}, FILES if files is None else files)


def test_what_is_put_is_what_is_read(tmp_path: Path) -> None:
    opened = Store(tmp_path / "store")
    put(opened)
    assert opened.finished() == [KEY] and opened.has(KEY) and opened.complete(KEY) and opened.sound(KEY)
    record = opened.record(KEY)
    assert {name: record[name] for name in RECORD} == RECORD and record["sizes"] == {name: len(FILES[name]) for name in FILES}
    assert opened.provenance(KEY) == {"host": "here"}
    assert opened.state_bytes(KEY) == b"weights" and opened.samples_bytes(KEY) == b"bits"
    text = (opened.folder(KEY) / "record.json").read_text()
    assert text == keys.canonical(json.loads(text)) and not list(opened.partial.iterdir())
    assert oct(opened.folder(KEY).stat().st_mode)[-3:] == "755"


def test_who_finds_the_name_taken_discards_its_own(tmp_path: Path) -> None:
    opened = Store(tmp_path / "store")
    put(opened, host="first")
    before = tree(tmp_path / "store", skip=())
    put(opened, host="second")
    put(opened, 0.75)
    assert tree(tmp_path / "store", skip=()) == before and opened.provenance(KEY) == {"host": "first"}


def test_a_result_that_lost_weights_gets_them_back_and_keeps_its_provenance(tmp_path: Path) -> None:
    opened = Store(tmp_path / "store")
    put(opened, host="first")
    before = tree(tmp_path / "store", skip=())
    assert opened.drop_state(KEY) == len(b"weights") and not opened.has_state(KEY) and opened.sound(KEY)
    put(opened, host="second")
    assert tree(tmp_path / "store", skip=()) == before
    for damage in (b"", b"weightz", b"longer than before"):
        (opened.folder(KEY) / "state.safetensors").write_bytes(damage)
        put(opened, host="second")
        assert tree(tmp_path / "store", skip=()) == before


def test_another_result_replaces_one_that_lost_weights_and_that_is_kept_aside(tmp_path: Path) -> None:
    opened = Store(tmp_path / "store")
    put(opened)
    opened.drop_state(KEY)
    put(opened, 0.75)
    assert opened.record(KEY)["records"] == [[0, "", 0.75]] and opened.complete(KEY)
    assert Results(tmp_path / "store").finished() == [KEY] and (opened.results / f"{KEY}.superseded-1" / "record.json").is_file()


@pytest.mark.parametrize("damage", ["record", "empty", "file"])
def test_a_damaged_result_is_replaced(tmp_path: Path, damage: str) -> None:
    opened = Store(tmp_path / "store")
    put(opened)
    if damage == "record":
        (opened.folder(KEY) / "record.json").write_text("{}")
    else:
        shutil.rmtree(opened.folder(KEY))
        opened.folder(KEY).mkdir() if damage == "empty" else opened.folder(KEY).write_text("x")
    put(opened)
    assert opened.sound(KEY) and opened.complete(KEY)


def test_failures_are_kept_until_the_stage_succeeds(tmp_path: Path) -> None:
    opened = Store(tmp_path / "store")
    opened.put_failure(KEY, "too warm", "Traceback")
    assert opened.failure(KEY) == "too warm" and opened.finished() == []
    (opened.results / f"{KEY}.failed" / "reason.json").write_text("{")
    assert opened.failure(KEY) is None
    put(opened)
    assert not (opened.results / f"{KEY}.failed").exists()


def test_one_process_at_a_time_runs_a_stage(tmp_path: Path) -> None:
    opened, other = Store(tmp_path / "store"), Store(tmp_path / "store")
    with opened.claim(KEY) as mine:
        with other.claim(KEY) as theirs, other.claim("0" * 24) as another:
            assert (mine, theirs, another) == (True, False, True)
        (opened.work(KEY) / "loop.pt").write_bytes(b"x")
    with other.claim(KEY) as mine:
        assert mine and (opened.partial / KEY / "loop.pt").exists(), "unfinished work stays"
        put(other)
    assert {path.name for path in opened.partial.iterdir()} == {f"{'0' * 24}.lock"}


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    code = f"""
    import os, sys
    from rtbench.storage.store import Store
    with Store(sys.argv[1]).claim("{KEY}") as mine:
        os.mkdir(sys.argv[1] + "/partial/{KEY}.abcd")
        os.kill(os.getpid(), 9)
    """
    assert studies.python(code, tmp_path / "store").returncode == -9
    with Store(tmp_path / "store").claim(KEY) as mine:
        assert mine and not (tmp_path / "store" / "partial" / f"{KEY}.abcd").exists(), "what it left half written is gone"


def test_a_lock_on_a_deleted_file_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the lock file and locking it, its holder finishes and deletes it, and a third process locks a new one."""
    lock, real, held = tmp_path / "lock", fcntl.flock, list[int | None]()

    def late(handle: int, flags: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        lock.unlink()
        held.append(disk.try_lock(lock) if third else None)
        real(handle, flags)

    for third in (True, False):
        lock.touch()
        monkeypatch.setattr(fcntl, "flock", late)
        handle = disk.try_lock(lock)
        assert (handle is None) == third
        for one in (handle, held.pop()):
            if one is not None:
                assert os.path.samestat(os.fstat(one), lock.stat())
                os.close(one)


def test_a_disk_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with Store(tmp_path / "store").claim(KEY) as mine:
        assert mine


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"schema": "1"}', b'{"schema": 0}', b'{"schema": true}', b'{"schema": null}', None]
)
def test_a_damaged_or_lost_header_costs_nothing(tmp_path: Path, content: bytes | None) -> None:
    opened = Store(tmp_path / "store")
    put(opened)
    header = tmp_path / "store" / "schema.json"
    header.unlink() if content is None else header.write_bytes(content)
    assert Store(tmp_path / "store", create=False).sound(KEY)
    assert Store(tmp_path / "store").sound(KEY) and json.loads(header.read_text()) == {"schema": 1}


def test_a_folder_in_place_of_the_header(tmp_path: Path) -> None:
    put(Store(tmp_path / "store"))
    (tmp_path / "store" / "schema.json").unlink()
    (tmp_path / "store" / "schema.json").mkdir()
    assert Store(tmp_path / "store").sound(KEY)


def test_a_newer_layout_is_refused_and_an_older_one_upgraded_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(Store(tmp_path / "store"))
    header = tmp_path / "store" / "schema.json"
    header.write_text('{"schema": 3}')
    before = tree(tmp_path, skip=())
    with pytest.raises(UserError, match="has layout 3, this rtbench reads up to 1; use a newer rtbench"):
        Store(tmp_path / "store")
    assert tree(tmp_path, skip=()) == before and header.read_text() == '{"schema": 3}'
    seen: list[int] = []
    header.write_text('{"schema": 1}')
    monkeypatch.setattr(store, "SCHEMA", 3)

    def second(opened: Store) -> None:
        seen.append(json.loads(header.read_text())["schema"])
        if len(seen) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "UPGRADES", {1: lambda opened: seen.append(len(opened.finished())), 2: second})
    with pytest.raises(StoreError, match="is full"):
        Store(tmp_path / "store")
    assert header.read_text() == '{"schema":2}' and seen == [1, 2], "one step after the other, each noted when it is done"
    Store(tmp_path / "store")
    assert header.read_text() == '{"schema":3}' and seen == [1, 2, 2]
    Store(tmp_path / "store")
    assert seen == [1, 2, 2]


def test_what_is_no_store_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store at"):
        Store(tmp_path / "nothing", create=False)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file, not a folder"):
        Store(tmp_path / "file")
    (tmp_path / "project" / "results").mkdir(parents=True)
    (tmp_path / "project" / "thesis.tex").write_text("x")
    for create in (True, False):
        with pytest.raises(UserError, match="neither empty nor a store" if create else "no store at"):
            Store(tmp_path / "project", create)
    assert sorted(path.name for path in (tmp_path / "project").iterdir()) == ["results", "thesis.tex"]
    Store(tmp_path / "deep" / "er")
    (tmp_path / "deep" / "er" / "notes.txt").write_text("x")
    assert Store(tmp_path / "deep" / "er").finished() == []


def test_many_processes_create_one_store(tmp_path: Path) -> None:
    found: list[Any] = []

    def create() -> None:
        try:
            found.append(Store(tmp_path / "a" / "store"))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=create) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(one, Store) for one in found), found


class Full:
    """Raises on the n-th call from when it is armed; counts all calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
        self.calls, self.fails_at = 0, 0
        for module, name in ((disk, "write"), (store, "write"), (os, "fsync"), (os, "rename"), (os, "mkdir")):
            monkeypatch.setattr(module, name, self._failing(getattr(module, name), code))

    def _failing(self, real: Any, code: int) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self.fails_at:
                if real.__name__ == "write":
                    given[0].write_bytes(given[1][: len(given[1]) // 2])
                raise OSError(code, os.strerror(code))
            return real(*given, **named)

        return call


def test_a_disk_that_fills_up_at_any_moment_ends_the_run_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = '{ use = "accuracy", at = "last", samples = 3, attack = { use = "square", norm = "linf", eps = 0.1, queries = 2 } }'
    text = studies.SUITE.replace("epochs = 2", "steps = 2").replace('{ use = "density", at = "last" }', slots)
    suite = write(tmp_path, text)
    whole = run(suite, tmp_path / "whole", **DENSE)
    path, full, right = tmp_path / "store", Full(monkeypatch), tree(tmp_path / "whole")
    while full.calls >= full.fails_at:
        shutil.rmtree(path, ignore_errors=True)
        full.calls, full.fails_at = 0, full.fails_at + 1
        try:
            assert not run(suite, path, checkpoint_seconds=0.0, **DENSE).tally.failed, "it is no stage's failure"
        except StoreError as error:
            assert "is full; finished stages are safe" in str(error) and "\n" not in str(error) and error.exit_code == 2
            assert tree(path).items() <= right.items(), "what is finished is whole"
            if full.fails_at % 3 == 0:
                assert numbers(run(suite, path, **DENSE)) == numbers(whole) and tree(path) == right
    assert full.fails_at > 40 and tree(path) == right


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    suite, path = write(tmp_path), tmp_path / "store"
    whole = run(suite, path, **DENSE)
    full = Full(monkeypatch, code)
    full.fails_at = 4
    with pytest.raises(StoreError, match=rf"cannot be written \({os.strerror(code)}\); name another one with --store"):
        run(suite, path, **{"only": {"recipe": ["sparse"]}})
    full.fails_at = 0
    assert numbers(run(suite, path, **DENSE)) == numbers(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 256 KiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)]
    if os.getuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a file system here")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_disk_that_is_really_full(tmp_path: Path, small_disk: Path) -> None:
    suite, path = write(tmp_path), small_disk / "store"
    whole = run(suite, tmp_path / "whole")
    (small_disk / "ballast").write_bytes(b"\0" * 180_000)
    ends = 0
    for ballast in (160_000, 120_000, 0):
        with pytest.raises(StoreError, match="is full; finished stages are safe"):
            run(suite, path)
        assert all(Results(path).sound(key) for key in Results(path).finished()), "whole or not there"
        (small_disk / "ballast").write_bytes(b"\0" * ballast)
        ends += 1
    board = run(suite, path)
    assert ends == 3 and tree(path) == tree(tmp_path / "whole") and numbers(board) == numbers(whole)


def test_a_store_that_is_really_read_only_can_be_looked_at(tmp_path: Path, small_disk: Path) -> None:
    suite, path = write(tmp_path), small_disk / "store"
    whole = run(suite, path, **DENSE)
    for index in (True, False):
        if not index:
            (path / "index.sqlite").unlink()
            (path / "schema.json").write_text("{")
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        assert numbers(rtbench.board(suite, store=path, device="cpu", **DENSE)) == numbers(whole)
        with pytest.raises(StoreError, match=r"cannot be written \(Read-only file system\); name another one with --store"):
            run(suite, path, **DENSE)
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert run(suite, path, **DENSE).tally.done == 0
