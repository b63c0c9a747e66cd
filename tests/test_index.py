"""The index: derived from the folders, never in the way, right or thrown away."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rtbench
from rtbench.errors import UserError
from rtbench.storage import index as indexing
from rtbench.storage.index import Index, rebuild
from rtbench.storage.results import Results
from rtbench.storage.store import Store
from studies import numbers, run, tree, write

CHOICES: dict[str, Any] = {"only": {"recipe": ["dense"]}}


class Study:
    def __init__(self, folder: Path) -> None:
        self.suite, self.store = write(folder), folder / "store"
        self.numbers = numbers(run(self.suite, self.store, **CHOICES))

    @property
    def file(self) -> Path:
        return self.store / "index.sqlite"

    def right(self) -> None:
        """The board and the run see what is there, and change nothing."""
        before = tree(self.store, skip=())
        assert numbers(rtbench.board(self.suite, store=self.store, device="cpu", **CHOICES)) == self.numbers
        board = run(self.suite, self.store, **CHOICES)
        assert board.tally.done == 0 and numbers(board) == self.numbers and tree(self.store, skip=()) == before


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def sound(file: Path) -> bool:
    with sqlite3.connect(file) as db:
        count = db.execute("select count(*) from stages").fetchone()[0]
        return bool(db.execute("pragma integrity_check").fetchone()[0] == "ok" and count == 4)


def test_a_lost_index_is_made_anew(study: Study) -> None:
    study.file.unlink()
    study.right()
    assert sound(study.file)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"SQLite format 3\0" + b"\xff" * 5000, os.urandom(3000)])
def test_a_damaged_index_is_made_anew(study: Study, content: bytes) -> None:
    study.file.write_bytes(content)
    study.right()
    assert sound(study.file)


@pytest.mark.parametrize("place", [100, 2000, 4200, -3000, -600])
def test_an_index_damaged_further_in(study: Study, place: int) -> None:
    content = bytearray(study.file.read_bytes())
    content[place : place + 300 if place + 300 else None] = b"\xa5" * len(content[place : place + 300 if place + 300 else None])
    study.file.write_bytes(content)
    study.right()


def test_a_truncated_index(study: Study) -> None:
    content = study.file.read_bytes()
    for size in (10, 100, 4096, len(content) // 2, len(content) - 1):
        study.file.write_bytes(content[:size])
        study.right()


def test_an_index_of_another_version(study: Study) -> None:
    for version in (1, 99):
        with sqlite3.connect(study.file) as db:
            db.execute(f"pragma user_version = {version}")
            db.execute("create table other (id integer primary key autoincrement)")
            db.execute("update stages set part = 'nonsense', about = 'nonsense'")
        db.close()
        study.right()
        assert sound(study.file)


def test_a_locked_index_is_done_without(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PATIENCE", 0.05)
    db = sqlite3.connect(study.file, isolation_level=None)
    db.execute("begin exclusive")
    started = time.monotonic()
    study.right()
    assert time.monotonic() - started < 5
    db.execute("rollback")
    db.close()
    assert sound(study.file)


def test_a_folder_in_its_place(study: Study) -> None:
    study.file.unlink()
    study.file.mkdir()
    (study.file / "x").write_text("x")
    study.right()
    with pytest.raises(UserError, match="cannot be replaced"):
        rebuild(Store(study.store))
    assert (study.file / "x").exists()


def test_an_index_that_lies_about_results(study: Study) -> None:
    """Rows of stages that are gone are forgotten, rows of changed ones read again."""
    key = Results(study.store).finished()[0]
    shutil.copytree(study.store / "results" / key, study.store / "copy")
    shutil.rmtree(study.store / "results" / key)
    index = Index(Store(study.store))
    assert key not in index.done() and not index.corrupt and not index.curve(key)
    index.close()
    shutil.move(study.store / "copy", study.store / "results" / key)
    study.right()


def test_rebuild_counts_what_it_finds(study: Study) -> None:
    assert rebuild(Store(study.store)) == 4
    study.file.write_bytes(b"nonsense")
    assert rebuild(Store(study.store)) == 4 and sound(study.file)


def test_what_is_found_damaged_stays_so_until_it_changes(study: Study) -> None:
    key = next(key for key in Results(study.store).finished() if "samples.safetensors" in Results(study.store).listing(key))
    path = study.store / "results" / key / "samples.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for _ in range(2):
        index = Index(Store(study.store))
        assert index.corrupt == [key] and key not in index.done()
        index.close()
    path.write_bytes(content)
    study.right()


def test_only_what_is_new_is_read(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = Results.record

    def counted(self: Results, key: str) -> dict[str, Any]:
        read.append(key)
        return real(self, key)

    monkeypatch.setattr(Results, "record", counted)
    index = Index(Store(study.store))
    assert len(index.done()) == 4 and not read
    index.close()


def test_many_readers_at_once(study: Study) -> None:
    study.file.unlink()
    code = "import sys; from rtbench.storage.store import Store; from rtbench.storage.index import Index; print(len(Index(Store(sys.argv[1])).done()))"
    command = [sys.executable, "-c", code, str(study.store)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    ends = [reader.communicate(timeout=60) for reader in readers]
    assert [out.strip() for out, _ in ends] == ["4"] * 6, ends
    assert sound(study.file)


def test_rows_curves_and_times(study: Study) -> None:
    results, index = Results(study.store), Index(Store(study.store))
    for key in results.finished():
        record, row = results.record(key), index.rows([key])[key]
        assert index.curve(key) == [tuple(entry) for entry in record["records"]]
        assert row.values == {name: value for _, name, value in record["records"]}
        assert (row.about, row.flags, row.seconds) == (record["about"], record["flags"], results.provenance(key)["seconds"])
    assert index.rows(["no such key"]) == {} and all(seconds > 0 for seconds in index.seconds().values()) and len(index.seconds()) == 4
    index.close()
