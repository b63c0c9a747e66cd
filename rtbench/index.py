"""The index: an SQLite view of a store's records, brought up to date from the folders, thrown away at the first doubt."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from rtbench.store import Lost, Store

VERSION = 1
TABLES = """
create table stages (key text primary key, stamp text, verb text, part text, version integer, dataset text, net text, seed integer,
                     seconds real, host text, device text, finished text, forwards integer, gradients integer,
                     knobs text, about text, flags text);
create table records (key text, step integer, name text, value real);
create index records_key on records (key);
"""


class Row(NamedTuple):
    """What the board needs of one stage. values: the last value of each name; timings are among them."""

    values: dict[str, float | None]
    about: dict[str, Any]
    flags: list[str]
    seconds: float


class Index:
    """An index of one store, in STORE/index.sqlite or, where that cannot be written or read, in memory."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.corrupt: list[str] = []
        try:
            self.db = _open(store.path / "index.sqlite")
            self.sync()
        except sqlite3.Error:
            # Lost, damaged, locked or on a read-only disk: the folders have everything.
            self.db = _open(Path(":memory:"))
            self.sync()

    def sync(self) -> None:
        """Reads what is new or changed, forgets what is gone; damaged folders go to `corrupt` and are not indexed."""
        known = dict(self.db.execute("select key, stamp from stages"))
        present = {key: stamp for key in self.store.keys() if (stamp := _stamp(self.store, key)) is not None}
        with self.db:
            for key in known.keys() - present.keys():
                self._forget(key)
            for key, stamp in present.items():
                if known.get(key) != stamp:
                    self._forget(key)
                    try:
                        self._insert(key, stamp, self.store.record(key), self.store.provenance(key))
                    except Lost:
                        self.corrupt.append(key)
        self.corrupt += [key for key in self.store.keys() if key not in present]

    def _forget(self, key: str) -> None:
        self.db.execute("delete from stages where key = ?", (key,))
        self.db.execute("delete from records where key = ?", (key,))

    def _insert(self, key: str, stamp: str, record: dict[str, Any], provenance: dict[str, Any]) -> None:
        stage, passes = record["stage"], record["passes"]
        part = stage["part"]
        row = (
            key, stamp, stage["verb"], part.get("use"), part.get("version"), stage["data"].get("use"), stage["net"].get("use"),
            # SQLite's integers are signed 64 bit, and so are the seeds.
            stage["seed"], provenance.get("seconds"), provenance.get("host"), provenance.get("device"), provenance.get("finished"),
            passes["forwards"], passes["gradients"], json.dumps(part.get("knobs")), json.dumps(record["about"]),
            json.dumps(record["flags"]),
        )  # fmt: skip
        self.db.execute(f"insert into stages values ({','.join('?' * len(row))})", row)
        timings = [[0, name, value] for name, value in provenance.get("timings", {}).items()]
        self.db.executemany("insert into records values (?, ?, ?, ?)", [(key, *entry) for entry in record["records"] + timings])

    def rows(self, keys: list[str]) -> dict[str, Row]:
        """The rows of those stages that are done."""
        found: dict[str, Row] = {}
        wanted = set(keys)
        for key, about, flags, seconds in self.db.execute("select key, about, flags, seconds from stages"):
            if key in wanted:
                found[key] = Row({}, json.loads(about), json.loads(flags), seconds or 0.0)
        for key, name, value in self.db.execute("select key, name, value from records order by rowid"):
            if key in found:
                found[key].values[name] = value
        return found

    def curve(self, key: str) -> list[tuple[int, str, float | None]]:
        """Every record of one stage in the order written: (step, name, value)."""
        return list(self.db.execute("select step, name, value from records where key = ? order by rowid", (key,)))

    def done(self) -> set[str]:
        return {key for (key,) in self.db.execute("select key from stages")}

    def seconds(self) -> dict[tuple[str, str, str], float]:
        """Mean seconds of finished stages by (verb, part with its knobs, net): what a similar stage will take."""
        query = "select verb, part || knobs, net, avg(seconds) from stages where seconds is not null group by 1, 2, 3"
        return {(verb, part or "", net or ""): mean for verb, part, net, mean in self.db.execute(query)}

    def close(self) -> None:
        self.db.close()


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=20)
    with contextlib.closing(db.execute("pragma user_version")) as cursor:
        (version,) = cursor.fetchone()
    if version != VERSION:
        with db:
            for (name,) in db.execute("select name from sqlite_master where type = 'table'").fetchall():
                db.execute(f'drop table "{name}"')
            db.executescript(f"{TABLES} pragma user_version = {VERSION};")
    return db


def _stamp(store: Store, key: str) -> str | None:
    """Changes whenever record.json does."""
    try:
        stat = os.stat(store.folder(key) / "record.json")
    except OSError:
        return None
    return f"{stat.st_mtime_ns}.{stat.st_size}"


def rebuild(store: Store) -> int:
    """Deletes the index and reads every folder again; returns how many stages are in it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        (store.path / f"index.sqlite{suffix}").unlink(missing_ok=True)
    index = Index(store)
    count = len(index.done())
    index.close()
    return count
